"""The GPU compilers where they are, and what ptxas says of a kernel."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from dd2_fast.ops import nvrtc

# The report of one kernel, in the log of nvcc -Xptxas -v and of NVRTC.
_REPORT = re.compile(
    r"Compiling entry function '(?P<symbol>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers[^\n]*?(?:(?P<shared>\d+) bytes smem|\n|$)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Usage:
    """What a kernel takes, in bytes; ``spilled`` counts stack, stores and loads."""

    spilled: int
    registers: int
    shared: int


def usage(log: str) -> dict[str, Usage]:
    """Usage of every kernel in a log of ptxas, by mangled name."""
    return {
        report["symbol"]: Usage(
            sum(int(report[name]) for name in ("stack", "stores", "loads")),
            int(report["registers"]),
            int(report["shared"] or 0),
        )
        for report in _REPORT.finditer(log)
    }


def resources(report: str) -> dict[str, dict[str, Usage]]:
    """The same by architecture of what cuobjdump --dump-resource-usage says of a library."""
    found: dict[str, dict[str, Usage]] = {}
    pattern = r"arch = (\w+)|Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    for arch, symbol, registers, stack, shared, local in re.findall(pattern, report):
        if arch:
            latest = arch
        else:
            used = Usage(int(stack) + int(local), int(registers), int(shared))
            found.setdefault(latest, {})[symbol] = used
    return found


def require_cuobjdump() -> str:
    """Its path, in Triton's wheel or on PATH; skips where it is in neither."""
    triton = importlib.util.find_spec("triton")
    folders = triton.submodule_search_locations if triton else None
    bundled = Path((folders or ["."])[0]) / "backends" / "nvidia" / "bin" / "cuobjdump"
    found = str(bundled) if bundled.exists() else shutil.which("cuobjdump")
    if found is None:
        pytest.skip("no cuobjdump in Triton's wheel or on PATH")
    return found


def require_nvrtc() -> None:
    """Skips where CuPy or NVRTC is missing; fails there in CI, whose ``test`` extra has them."""
    reason = nvrtc.load()[1]
    if reason is not None and os.environ.get("CI"):
        pytest.fail(f"CI is to compile the kernels: {reason}")
    if reason is not None:
        pytest.skip(reason)


def require_nvcc() -> str:
    """The path of nvcc; skips where there is none, or the build is told to leave it alone."""
    if os.environ.get("DD2_FAST_CUDA") == "0":
        pytest.skip("DD2_FAST_CUDA=0")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    named = [
        os.environ.get("CUDACXX"),
        "nvcc",
        *(Path(home) / "bin" / "nvcc" for home in homes if home),
    ]
    found = next((path for name in named if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no nvcc on PATH, in CUDACXX or under CUDA_HOME")
    return found
