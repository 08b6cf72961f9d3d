"""The C++ compiler: which it is, what it knows, and why there is none."""

from __future__ import annotations

import os
import platform
import subprocess
import sysconfig
from dataclasses import dataclass

from .commands import command, complaint, flags

CANDIDATES = ("g++", "c++", "clang++")
# The builder's own flags come first: of two that contradict each other the last counts.
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
_WIDE = "-mprefer-vector-width=512"
# What csrc/cpu/dispatch.cpp asks the processor for, where a compiler does not know the level's name
# (GCC before 11, Clang before 12).
_SPELLED_OUT = {
    "v2": ["-mcx16", "-msahf", "-mpopcnt", "-msse4.2"],
    "v3": ["-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mf16c", "-mlzcnt", "-mmovbe"],
    "v4": ["-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"],
}
_PROBE = "#include <vector>\nint main() { return static_cast<int>(std::vector<int>().size()); }\n"


@dataclass(frozen=True)
class Cxx:
    """A compiler that works."""

    command: list[str]

    def takes(self, *arguments: str) -> bool:
        return (
            complaint(self.command, list(arguments), "int main() { return 0; }\n", ".cpp") is None
        )

    @property
    def flags(self) -> list[str]:
        openmp = ["-fopenmp"] if self.takes("-fopenmp") else []
        return [*flags("CPPFLAGS", "CXXFLAGS"), *FLAGS, *openmp]

    @property
    def link_flags(self) -> list[str]:
        return [*flags("LDFLAGS"), *(["-fopenmp"] if self.takes("-fopenmp") else [])]

    @property
    def version(self) -> str:
        run = subprocess.run([*self.command, "--version"], capture_output=True, text=True)
        return (run.stdout.splitlines() or [self.command[0]])[0]

    def instruction_sets(self) -> dict[str, list[str]]:
        """Namespace of each build of the CPU kernels (csrc/cpu/dispatch.h) and its flags."""
        if platform.machine() not in ("x86_64", "AMD64"):
            return {"generic": []}
        found: dict[str, list[str]] = {}
        spelled: list[str] = []
        for level, own in _SPELLED_OUT.items():
            spelled = [*spelled, *own]
            named = [f"-march=x86-64-{level}"]
            known = next((f for f in (named, spelled) if self.takes(*f)), None)
            if known is None:
                break  # a higher level holds this one
            found[level] = known
        if "v4" in found and self.takes(*found["v4"], _WIDE):
            found["v4"] = [*found["v4"], _WIDE]
        return found or {"generic": []}


def find() -> tuple[Cxx | None, str]:
    """The compiler of CXX or else the first of :data:`CANDIDATES` that works, or why there is
    none, as a line that ends in what to do."""
    named = os.environ.get("CXX", "").strip()
    seen = []
    for candidate in [named] if named else CANDIDATES:
        words = command(candidate)
        name = f"CXX={candidate}" if named else candidate
        if words is None:
            seen.append(f"{name} is not there")
            continue
        problem = complaint(words, ["-std=c++17"], _PROBE, ".cpp")
        if problem is None:
            return _with_headers(Cxx(words))
        seen.append(f"{name} does not compile C++17: {problem}")
    return None, (
        f"no C++ compiler when it was installed ({'; '.join(seen)}): get one, for example by "
        "'apt-get install g++', and run 'pip install --force-reinstall --no-deps .' again"
    )


def _with_headers(cxx: Cxx) -> tuple[Cxx | None, str]:
    """Python's own headers are a package of their own in many systems."""
    include = f"-I{sysconfig.get_paths()['include']}"
    problem = complaint(cxx.command, ["-c", include], "#include <Python.h>\n", ".cpp")
    if problem is None:
        return cxx, ""
    return None, (
        f"no headers of Python when it was installed ({problem}): get them, for example by "
        "'apt-get install python3-dev', and run 'pip install --force-reinstall --no-deps .' again"
    )
