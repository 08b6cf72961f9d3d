"""Compilers as the environment names them, and what they can compile."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path


def command(value: str) -> list[str] | None:
    """A program and its arguments, with the program's absolute path; None where there is none.

    ``value`` is a path, which may hold spaces, or words as a shell splits them: a launcher before
    the compiler, flags behind it.
    """
    path = shutil.which(value)
    if path is not None:
        return [os.path.abspath(path)]
    words = split(value)
    path = shutil.which(words[0]) if words else None
    return [os.path.abspath(path), *words[1:]] if path else None


def split(value: str) -> list[str]:
    """Words as a shell splits them; all of it as one where a quote is left open."""
    try:
        return shlex.split(value)
    except ValueError:
        return [value]


def flags(*names: str) -> list[str]:
    """The flags in these environment variables."""
    return [flag for name in names for flag in split(os.environ.get(name, ""))]


def complaint(compiler: list[str], arguments: list[str], source: str, suffix: str) -> str | None:
    """Why ``source``, in a file of that suffix, does not compile; None where it does.

    Of what the compiler says, the first line with an error, or the first.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"probe{suffix}").write_text(source)
        words = [*compiler, *arguments, f"probe{suffix}", "-o", "probe.out"]
        try:
            run = subprocess.run(
                words, cwd=folder, env=plain_environment(), capture_output=True, text=True,
                errors="replace",
            )  # fmt: skip
        except OSError as error:
            return str(error)
    if run.returncode == 0:
        return None
    lines = [line.strip() for line in (run.stderr + run.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [f"exit status {run.returncode}"])[0]


def plain_environment() -> dict[str, str]:
    """For a compiler that runs in a folder of its own: it leaves its temporary files there, since
    nvcc takes no TMPDIR with a dollar or quote."""
    return {**os.environ, "TMPDIR": "."}


def jobs() -> list[str]:
    """Ninja's option for MAX_JOBS."""
    value = os.environ.get("MAX_JOBS", "").strip()
    if not value:
        return []
    if not value.isdecimal() or int(value) < 1:
        raise SystemExit(f"MAX_JOBS: expected a whole number from 1 on, got {value!r}")
    return ["-j", str(int(value))]
