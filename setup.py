"""Builds ``dd2_fast._C``: C++ kernels always, CUDA kernels where nvcc is found.

The extension knows nothing of torch, so the build needs only setuptools, pybind11 and ninja.

    DD2_FAST_CUDA=0|1       never / always build the CUDA part (default: where nvcc is found)
    DD2_FAST_CUDA_ARCHS     e.g. "80,90a,100+PTX", or "all" (default: the GPU's that is there; where
                            none is, those this nvcc knows of 80, 90, 100)
    CXX, CUDACXX            the compilers, with a launcher or flags if need be: "ccache g++"
    CPPFLAGS, CXXFLAGS, LDFLAGS, MAX_JOBS   as elsewhere; of two flags the package's own counts
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "csrc"))
from buildtools import commands, cxx, nvcc  # noqa: E402
from buildtools.ninja import NinjaFile  # noqa: E402

# The same files make the same wheel, whenever they were copied.
os.environ.setdefault("SOURCE_DATE_EPOCH", "1580601600")
COMPILED = ["-MD", "-MF", "$out.d", "-c", "$in", "-o", "$out"]
# What takes longest is begun first, the rest by name.
LONGEST = ("conditional_score", "conditional_score_dense_float32",
           "conditional_score_dense_bfloat16", "conditional_score_dense_float16",
           "flow_solve")  # fmt: skip


class BuildExtension(build_ext):
    def run(self) -> None:
        self.cxx, missing = cxx.find()
        target = Path(self.get_ext_fullpath("dd2_fast._C")).resolve()
        self.record = target.with_name("build.json")
        self.record.parent.mkdir(parents=True, exist_ok=True)
        if self.cxx is None:
            print(
                f"dd2_fast: installing without the compiled extension: {missing}. Everything runs "
                "on the plain-torch reference, slower.",
                file=sys.stderr,
            )
            self.extensions = []
            self._remember({"missing": missing})
        super().run()

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp).resolve() / "ninja"
        folder.mkdir(parents=True, exist_ok=True)
        assert self.cxx is not None
        cuda, without = nvcc.find()
        levels = self.cxx.instruction_sets()
        ninja = ninja_file(folder, target, self.cxx, levels, cuda)
        ninja.write()
        said = f"CUDA {cuda.version} for {cuda.names}, {cuda.chosen}" if cuda else without
        self._remember({"with": self.cxx.version, "for": ", ".join(levels), "cuda": said})
        said = said if cuda else f"no CUDA part: {without}"
        print(f"dd2_fast: building {target.name}: {self.cxx.version}; {said}", file=sys.stderr)
        program = shutil.which("ninja")
        if program is None:
            sys.exit("dd2_fast: the build needs ninja on PATH: pip install ninja")
        run = subprocess.run(
            [program, *commands.jobs()], cwd=folder, env=commands.plain_environment()
        )
        if run.returncode:
            sys.exit(
                "dd2_fast: the build failed; what the compiler said is above. DD2_FAST_CUDA=0 "
                "leaves out the CUDA part, CXX names another compiler."
            )

    def _remember(self, seen: dict[str, str]) -> None:
        """For ``dd2-fast info``: pip shows nothing of a build that succeeds."""
        self.record.write_text(json.dumps(seen, indent=1) + "\n")


def ninja_file(
    folder: Path,
    target: Path,
    compiler: cxx.Cxx,
    levels: dict[str, list[str]],
    cuda: nvcc.Nvcc | None,
) -> NinjaFile:
    """How to build ``target`` in ``folder``."""
    try:
        import pybind11
    except ImportError:
        sys.exit("dd2_fast: the build needs pybind11: pip install pybind11")
    csrc, ninja = ROOT / "csrc", NinjaFile(folder)
    includes = [f"-I{ninja.relative(csrc / name)}" for name in ("", "include", "cpu")]
    link = [*compiler.command, "-shared", "-o", "$out", "$in", *compiler.link_flags]
    if sys.platform == "darwin":
        link += ["-undefined", "dynamic_lookup"]
    # For the bindings alone: the path changes with every isolated build, and what it is in
    # compiles anew.
    bound = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    if cuda is not None:
        bound += ["-DDD2_WITH_CUDA", f'-DDD2_CUDA_ARCHS="{cuda.names}"']
        bound.append(f'-DDD2_NVCC_VERSION="{cuda.version}"')
        link += cuda.link_flags
        ninja.rule("nvcc", [*cuda.command, *cuda.flags, *includes, *COMPILED])
        for source in ordered(csrc / "cuda", "*.cu"):
            ninja.compile("nvcc", source)
    ninja.rule("cxx", [*compiler.command, *compiler.flags, *includes, "$flags", *COMPILED])
    ninja.rule("link", link, depfile=False)
    for source in ordered(csrc / "cpu", "*.cpp"):
        for name, flags in levels.items() if source.stem != "dispatch" else ():
            ninja.compile("cxx", source, f".{name}", [*flags, f"-DDD2_ISA={name}"])
    known = [f"-DDD2_WITH_{name.upper()}" for name in levels]
    ninja.compile("cxx", csrc / "cpu" / "dispatch.cpp", flags=known)
    for source in ordered(csrc / "plan", "*.cpp"):
        ninja.compile("cxx", source, ".plan")
    ninja.compile("cxx", csrc / "bindings.cpp", flags=["-O1", *bound])  # templates, no arithmetic
    ninja.link(target)
    return ninja


def ordered(folder: Path, pattern: str) -> list[Path]:
    def rank(path: Path) -> tuple[int, str]:
        return (LONGEST.index(path.stem) if path.stem in LONGEST else len(LONGEST), path.stem)

    return sorted(folder.glob(pattern), key=rank)


if __name__ == "__main__":
    setup(
        # The kernels' headers, which CuPy compiles, lie outside of the package.
        packages=[*find_packages(include=["dd2_fast", "dd2_fast.*"]), "dd2_fast.csrc"],
        package_dir={"dd2_fast.csrc": "csrc"},
        # Sources are left to ninja, so setuptools must always ask it.
        ext_modules=[Extension("dd2_fast._C", sources=[])],
        cmdclass={"build_ext": BuildExtension},
        options={"build_ext": {"force": True}},
    )
