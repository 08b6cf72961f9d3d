"""Compiles C++ sources, kernels under cuda_shim.h among them, into a library for ctypes."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

NATIVE_DIR = Path(__file__).resolve().parent
CSRC = NATIVE_DIR.parents[1] / "csrc"
DEFAULT_INCLUDES = (NATIVE_DIR, NATIVE_DIR / "fake_runtime", CSRC, CSRC / "include")


def compiler_command() -> list[str]:
    """The C++ compiler of the environment variable CXX, which may carry a launcher, or g++."""
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


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
    # -O2 takes the kernels' templates twice as long, for code that runs about as fast.
    command = [*compiler_command(), "-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra"]
    if not any("clang" in word for word in command):
        # Else g++ gives all libraries of a process one copy of a template's or inline's statics.
        command.append("-fno-gnu-unique")
    command += [f"-I{path}" for path in includes]
    command += [*flags, *shlex.split(os.environ.get("DD2_SHIM_FLAGS", ""))]
    command += [*map(str, sources), "-o", str(library)]
    # A sanitizer's runtime is for this process, not for the compiler.
    unloaded = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    result = subprocess.run(command, capture_output=True, text=True, env=unloaded)
    if result.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{result.stderr}")
    return library
