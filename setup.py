"""Builds ``dd2_fast._C``: C++ kernels always, CUDA kernels where nvcc is found.

The extension knows nothing of torch, so the build needs only setuptools, pybind11 and ninja.

    DD2_FAST_CUDA=0|1       never / always build the CUDA part (default: where nvcc is found)
    DD2_FAST_CUDA_ARCHS     e.g. "80,90a,100+PTX" (default: those this nvcc knows of 80, 90a, 100)
    CXX, CUDACXX            the compilers
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
DEFAULT_ARCHS = ("80", "90a", "100")
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
INCLUDES = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'csrc' / 'cpu'}"]


def find_cxx() -> str | None:
    named = os.environ.get("CXX")
    candidates = [named.split()[0]] if named else ["g++", "c++", "clang++"]
    return next((path for c in candidates if (path := shutil.which(c))), None)


def compiles(cxx: str, flags: list[str]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("int main() { return 0; }\n")
        command = [cxx, *flags, str(source), "-o", str(source.with_suffix(""))]
        return subprocess.run(command, capture_output=True).returncode == 0


class Nvcc:
    """nvcc, the toolkit it belongs to and the architectures to build for."""

    def __init__(self, path: str) -> None:
        self.path = path
        # nvcc may be a wrapper script: ask it where its toolkit is.
        dryrun = self._run("--dryrun", "-x", "cu", os.devnull, "-c", "-o", os.devnull).stderr
        top = re.search(r"^#\$ TOP=(.+)$", dryrun, re.MULTILINE)
        self.top = Path(top.group(1).strip()).resolve() if top else Path(path).resolve().parents[1]
        release = re.search(r"release ([\d.]+)", self._run("--version").stdout)
        self.version = release.group(1) if release else "unknown"
        known = set(re.findall(r"compute_(\w+)", self._run("--list-gpu-arch").stdout))
        self.archs, self.ptx = self._choose(known)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.path, *arguments], capture_output=True, text=True)

    @staticmethod
    def _choose(known: set[str]) -> tuple[list[str], str | None]:
        named = os.environ.get("DD2_FAST_CUDA_ARCHS")
        if not named:
            archs = [a for a in DEFAULT_ARCHS if a.rstrip("a") in known]
            return archs, archs[-1].rstrip("a")
        archs, ptx = [], None
        for arch in re.split(r"[,; ]+", named.strip()):
            match = re.fullmatch(r"(\d+a?)(\+PTX)?", arch.replace(".", ""))
            if not match:
                sys.exit(f"DD2_FAST_CUDA_ARCHS: expected e.g. '80,90a,100+PTX', got {named!r}")
            archs.append(match.group(1))
            ptx = match.group(1).rstrip("a") if match.group(2) else ptx
        return archs, ptx

    @property
    def names(self) -> str:
        return ",".join([*(f"sm_{a}" for a in self.archs), *([f"PTX_{self.ptx}"] * bool(self.ptx))])

    @property
    def flags(self) -> list[str]:
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in self.archs]
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


def find_nvcc() -> Nvcc | None:
    wanted = os.environ.get("DD2_FAST_CUDA", "")
    if wanted not in ("", "0", "1"):
        sys.exit(f"DD2_FAST_CUDA: expected 0 or 1, got {wanted!r}")
    if wanted == "0":
        return None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [os.environ.get("CUDACXX"), "nvcc", *(f"{h}/bin/nvcc" for h in homes if h)]
    path = next((p for c in candidates if c and (p := shutil.which(c))), None)
    if path is None and wanted == "1":
        sys.exit(
            "DD2_FAST_CUDA=1: expected nvcc on PATH, in CUDACXX or under CUDA_HOME; none found"
        )
    return Nvcc(path) if path else None


def instruction_sets(cxx: str) -> dict[str, list[str]]:
    """Namespace of each build of the CPU kernels (csrc/cpu/dispatch.h) and its flags."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return {"generic": []}
    wide = "-mprefer-vector-width=512"
    v4 = ["-march=x86-64-v4", *([wide] if compiles(cxx, ["-march=x86-64-v4", wide]) else [])]
    return {"v2": ["-march=x86-64-v2"], "v3": ["-march=x86-64-v3"], "v4": v4}


class NinjaFile:
    """A build.ninja; ninja itself rebuilds what a changed source, header or flag touches."""

    def __init__(self) -> None:
        self.lines = ["ninja_required_version = 1.5"]
        self.objects: list[str] = []

    def rule(self, name: str, command: list[str], depfile: bool = True) -> None:
        self.lines += [f"rule {name}", f"  command = {' '.join(command)}"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def compile(self, rule: str, source: Path, suffix: str = "", flags: str = "") -> None:
        target = f"{source.stem}{suffix}{source.suffix}.o"
        escaped = str(source).replace(" ", "$ ").replace(":", "$:")
        self.lines += [f"build {target}: {rule} {escaped}", f"  flags = {flags}"]
        self.objects.append(target)

    def link(self, target: Path) -> None:
        escaped = str(target).replace(" ", "$ ").replace(":", "$:")
        self.lines += [f"build {escaped}: link {' '.join(self.objects)}", ""]


class BuildExtension(build_ext):
    def run(self) -> None:
        self.cxx = find_cxx()
        if self.cxx is None:
            print(
                "dd2_fast: no C++ compiler found (CXX, g++, c++, clang++): installing without the "
                "compiled extension. Everything runs on the plain-torch reference, slower. "
                "Install a compiler and reinstall to build it.",
                file=sys.stderr,
            )
            self.extensions = []
        super().run()

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        build = Path(self.build_temp).resolve() / "ninja"
        build.mkdir(parents=True, exist_ok=True)
        assert self.cxx is not None
        # For the bindings alone: the path changes with every isolated build, and what it is in
        # compiles anew.
        python = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
        openmp = ["-fopenmp"] if compiles(self.cxx, ["-fopenmp"]) else []
        ninja = NinjaFile()
        nvcc = find_nvcc()
        defines = []
        link = [self.cxx, "-shared", "-o", "$out", "$in", *openmp]
        if sys.platform == "darwin":
            link += ["-undefined", "dynamic_lookup"]
        if nvcc is not None:
            defines = ["-DDD2_WITH_CUDA", f"-DDD2_CUDA_ARCHS='\"{nvcc.names}\"'"]
            defines.append(f"-DDD2_NVCC_VERSION='\"{nvcc.version}\"'")
            link += nvcc.link_flags
            ninja.rule(
                "nvcc",
                [
                    nvcc.path,
                    *nvcc.flags,
                    *INCLUDES,
                    "-MD",
                    "-MF",
                    "$out.d",
                    "-c",
                    "$in",
                    "-o",
                    "$out",
                ],
            )
            for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
                ninja.compile("nvcc", source)
        ninja.rule(
            "cxx",
            [
                self.cxx,
                *CXX_FLAGS,
                *openmp,
                *INCLUDES,
                "$flags",
                "-MD",
                "-MF",
                "$out.d",
                "-c",
                "$in",
                "-o",
                "$out",
            ],
        )
        ninja.rule("link", link, depfile=False)
        for name, flags in instruction_sets(self.cxx).items():
            for source in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")):
                if source.stem != "dispatch":
                    wide = " ".join([*flags, f"-DDD2_ISA={name}"])
                    ninja.compile("cxx", source, f".{name}", wide)
        ninja.compile("cxx", ROOT / "csrc" / "cpu" / "dispatch.cpp")
        ninja.compile("cxx", ROOT / "csrc" / "bindings.cpp", flags=" ".join(python + defines))
        ninja.link(target)
        (build / "build.ninja").write_text("\n".join(ninja.lines))
        cuda = f"CUDA {nvcc.version} for {nvcc.names}" if nvcc else "no CUDA part"
        print(f"dd2_fast: building {target.name}: {self.cxx}, {cuda}", file=sys.stderr)
        subprocess.run([shutil.which("ninja") or "ninja", "-C", str(build)], check=True)


setup(
    # Sources are left to ninja, so setuptools must always ask it.
    ext_modules=[Extension("dd2_fast._C", sources=[])],
    cmdclass={"build_ext": BuildExtension},
    options={"build_ext": {"force": True}},
)
