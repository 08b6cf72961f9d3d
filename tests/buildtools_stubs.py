"""Compilers and drivers made up of shell scripts, and the checkout's build modules."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A folder of a user's.
ODD = "my $HOME 'copy' \"é\" #1"


def module(name: str) -> ModuleType:
    """``buildtools.<name>`` of the checkout, as ``setup.py`` imports it."""
    csrc = ROOT / "csrc"
    if not csrc.is_dir():
        pytest.skip("no checkout")
    if str(csrc) not in sys.path:
        sys.path.append(str(csrc))
    return importlib.import_module(f"buildtools.{name}")


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def real_gxx() -> str:
    found = shutil.which("g++")
    if found is None:
        pytest.skip("no g++")
    return found


def refusing(path: Path, *patterns: str) -> Path:
    """g++ that does not know the flags that match one of the shell's patterns."""
    known = "|".join(patterns)
    return script(
        path,
        f'for a in "$@"; do case "$a" in {known}) echo "error: bad value $a" >&2; exit 1;; esac; '
        f'done\nexec "{real_gxx()}" "$@"',
    )


def nvcc(path: Path, top: Path, known: str = "80 86 90 90a 100", error: str = "") -> Path:
    """nvcc of CUDA 13.1 that compiles nothing, or says ``error``."""
    names = "\\n".join(f"compute_{name}" for name in known.split())
    return script(
        path,
        f"""case "$*" in
  *--dryrun*) echo '#$ TOP={top}' >&2;;
  *--version*) echo 'Cuda compilation tools, release 13.1, V13.1.9';;
  *--list-gpu-arch*) printf '{names}\\n';;
  *) [ -z '{error}' ] || {{ echo '{error}' >&2; exit 1; }};;
esac""",
    )
