"""nvcc, the toolkit it belongs to and the architectures to build for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .commands import command, complaint

DEFAULT_ARCHS = ("80", "90", "100")
_OLDEST = 80  # what the kernels need
# Up to here the kernels ask for nothing that the oldest has not: their PTX is the same to the
# letter and is made once. From 100 on there are instructions for pairs of floats.
_LAST_OF_OLDEST = 99


def visible_archs() -> list[str]:
    """Compute capabilities of the GPUs that nvidia-smi shows, as "90"; none where it shows none."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    query = [smi, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if shown.returncode != 0:
        return []
    found = (re.fullmatch(r"(\d+)\.(\d)", line.strip()) for line in shown.stdout.splitlines())
    return sorted({f"{m.group(1)}{m.group(2)}" for m in found if m}, key=int)


class Nvcc:
    """A compiler that works; ``archs`` and ``ptx`` are what it is to build, ``chosen`` says why."""

    def __init__(self, words: list[str]) -> None:
        self.command = words
        # nvcc may be a wrapper script: ask it where its toolkit is.
        dryrun = self._run("--dryrun", "-x", "cu", os.devnull, "-c", "-o", os.devnull).stderr
        top = re.search(r"^#\$ TOP=(.+)$", dryrun, re.MULTILINE)
        beside = Path(words[-1] if os.path.isabs(words[-1]) else words[0])
        self.top = Path(top.group(1).strip()).resolve() if top else beside.resolve().parents[1]
        release = re.search(r"release ([\d.]+)", self._run("--version").stdout)
        self.version = release.group(1) if release else "unknown"
        known = set(re.findall(r"compute_(\w+)", self._run("--list-gpu-arch").stdout))
        self.archs, self.ptx, self.chosen = self._choose(known)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self.command, *arguments], capture_output=True, text=True)

    @staticmethod
    def _choose(known: set[str]) -> tuple[list[str], str | None, str]:
        named = os.environ.get("DD2_FAST_CUDA_ARCHS", "").strip()
        defaults = [a for a in DEFAULT_ARCHS if a in known]
        if named and named != "all":
            return (*_parsed(named), "as DD2_FAST_CUDA_ARCHS says")
        usable = [a for a in visible_archs() if int(a) >= _OLDEST]
        if not named and usable and all(a in known for a in usable):
            return usable, usable[-1], "the GPU that was there"
        if not defaults:
            return [], None, f"it knows none of {', '.join(DEFAULT_ARCHS)}"
        why = "as DD2_FAST_CUDA_ARCHS says" if named else "no GPU was there to choose by"
        return defaults, defaults[-1], why

    @property
    def names(self) -> str:
        return ",".join([*(f"sm_{a}" for a in self.archs), *([f"PTX_{self.ptx}"] * bool(self.ptx))])

    @property
    def flags(self) -> list[str]:
        shared = [a for a in self.archs if a.isdigit() and int(a) <= _LAST_OF_OLDEST]
        rest = [a for a in self.archs if a not in shared]
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in rest]
        if shared:
            targets = ",".join(f"sm_{a}" for a in shared)
            codes.append(f"-gencode=arch=compute_{min(shared, key=int)},code=[{targets}]")
        if self.ptx:
            codes.append(f"-gencode=arch=compute_{self.ptx},code=compute_{self.ptx}")
        host = "-Xcompiler=-fPIC,-fvisibility=hidden"
        fast = ["-O3", "-lineinfo", "--threads=2", "-Xfatbin=-compress-all"]
        return ["-std=c++17", *fast, host, *codes]

    @property
    def link_flags(self) -> list[str]:
        folders = [self.top / "lib64", self.top / "lib", self.top / "targets/x86_64-linux/lib"]
        searched = [f"-L{folder}" for folder in folders if folder.is_dir()]
        return [*searched, "-lcudart_static", "-ldl", "-lrt", "-lpthread"]


def _parsed(named: str) -> tuple[list[str], str | None]:
    archs, ptx = [], None
    for arch in filter(None, re.split(r"[,; ]+", named)):
        match = re.fullmatch(r"(\d+a?)(\+PTX)?", arch.replace(".", ""))
        if not match:
            sys.exit(f"DD2_FAST_CUDA_ARCHS: expected 'all' or e.g. '80,90a,100+PTX', got {named!r}")
        archs.append(match.group(1))
        ptx = match.group(1).rstrip("a") if match.group(2) else ptx
    return archs, ptx


def find() -> tuple[Nvcc | None, str]:
    """nvcc, or None and why the CUDA part is left out."""
    wanted = os.environ.get("DD2_FAST_CUDA", "")
    if wanted not in ("", "0", "1"):
        sys.exit(f"DD2_FAST_CUDA: expected 0 or 1, got {wanted!r}")
    if wanted == "0":
        return None, "DD2_FAST_CUDA=0"
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    named = os.environ.get("CUDACXX", "").strip()
    candidates = [named, "nvcc", *(os.path.join(h, "bin", "nvcc") for h in homes if h)]
    words = next((w for c in candidates if c and (w := command(c))), None)
    if words is None:
        reason = "no nvcc on PATH, in CUDACXX or under CUDA_HOME"
    else:
        problem = complaint(words, ["-E", "-x", "cu"], "#include <cuda_runtime.h>\n", ".cu")
        nvcc = Nvcc(words) if problem is None else None
        if nvcc is not None and nvcc.archs:
            return nvcc, ""
        reason = f"{words[-1]} cannot be used: {problem or (nvcc.chosen if nvcc else '')}"
    if wanted == "1":
        sys.exit(f"DD2_FAST_CUDA=1: expected nvcc: {reason}")
    return None, reason
