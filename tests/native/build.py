"""Compiles C++ sources into libraries for ctypes."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ptxrun.build import compiler_command

NATIVE_DIR = Path(__file__).resolve().parent
CSRC = NATIVE_DIR.parents[1] / "csrc"
DEFAULT_INCLUDES = (CSRC, CSRC / "include")

FLAGS = ("-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra")


def operators(kind: str = "DD2_(?:CUDA_)?OPERATOR") -> dict[str, str]:
    """The type of the arguments of each operator with GPU kernels, by operators.def."""
    lines = (CSRC / "operators.def").read_text()
    return dict(re.findall(rf"^{kind}\((\w+), (\w+)\)$", lines, re.M))


def cpu_operators() -> dict[str, str]:
    """Of each with CPU kernels."""
    return operators("DD2_(?:CPU_)?OPERATOR")


def compiled_operators() -> dict[str, str]:
    """Of each with compiled kernels."""
    return operators() | cpu_operators()


def _own_statics() -> list[str]:
    """Else g++ gives all libraries of a process one copy of a template's or inline's statics."""
    return [] if any("clang" in word for word in compiler_command()) else ["-fno-gnu-unique"]


def build_shared(
    sources: Sequence[Path],
    out_dir: Path,
    *,
    includes: Sequence[Path] = DEFAULT_INCLUDES,
    flags: tuple[str, ...] = (),
) -> Path:
    """Builds `sources` into `out_dir/<stem of the first>.so` and returns its path.

    Raises RuntimeError with the compiler's messages where it does not compile.
    """
    if not sources:
        raise ValueError("sources must name at least one file, got none")
    out_dir.mkdir(parents=True, exist_ok=True)
    library = out_dir / f"{sources[0].stem}.so"
    command = [*compiler_command(), *FLAGS, "-shared", *_own_statics()]
    command += [f"-I{path}" for path in includes]
    command += [*flags, *map(str, sources), "-o", str(library)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{result.stderr}")
    return library
