"""Kernels as NVRTC compiles them, launched on the CPU by :mod:`ptxrun`."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import ptxrun
import pytest
from compiled.memory import Tracked
from native.build import CSRC
from ptxrun.build import cache_folder

from dd2_fast.ops import nvrtc
from dd2_fast.ops.launch import header_of

Launch = tuple[ptxrun.Counters, list[ptxrun.Fault]]


@dataclass(eq=False)
class Executor:
    """A device of ``arch`` (80, 90) with ``processors`` multiprocessors.

    What its sizes would choose only for large inputs, ``cuda`` can be made to launch for all:
    ``streamed``: plans hear of no shared memory for rows, which are then read again and again;
    ``tensor_cores``: scores by tensor cores wherever their kernels can be used.
    """

    arch: int = 90
    processors: int = 132
    checks: ptxrun.Checks = field(default_factory=ptxrun.Checks)
    headers: Path | None = None  # instead of csrc/include
    streamed: bool = False
    tensor_cores: bool = False
    nvcc: str | None = None  # the compiler of what csrc/cuda launches, instead of NVRTC
    log: list[Launch] = field(default_factory=list)
    memory: Tracked = field(default_factory=Tracked)
    kernels: set[str] = field(default_factory=set)  # that were launched

    @property
    def shared_limit(self) -> int:
        """Bytes of shared memory that a block can have."""
        return ptxrun.SHARED_LIMITS[self.arch]

    @property
    def faults(self) -> list[ptxrun.Fault]:
        """Of all launches since :meth:`clear`."""
        return [fault for _, faults in self.log for fault in faults]

    def clear(self) -> None:
        """Forgets launches, and the tensors that they were allowed to touch."""
        self.log.clear()
        self.memory.extents.clear()

    def launch(
        self,
        function: ptxrun.Function,
        grid: Sequence[int],
        block: Sequence[int],
        params: bytes,
        shared: int,
    ) -> None:
        """Runs a kernel and keeps what it counted and what was found."""
        launched = function.launch(
            grid, block, shared=shared, params=params, memory=self.memory.extents,
            checks=self.checks, raises=False,
        )  # fmt: skip
        self.log.append(launched)
        self.kernels.add(function.name)

    def kernel(self, header: str, expression: str) -> ptxrun.Function:
        """An instantiation in ``dd2/<header>.cuh``."""
        arch = f"compute_{self.arch}{'a' * (self.arch == 90)}"
        return load(header, expression, arch, self.headers)

    def kernel_named(self, symbol: str) -> ptxrun.Function:
        """The same by its mangled name."""
        if self.nvcc is None:
            return self.kernel(*expression_of(symbol))
        modules = nvcc_modules(self.nvcc, f"sm_{self.arch}{'a' * (self.arch == 90)}")
        return next(module for module in modules if symbol in module.kernels).function(symbol)


@functools.cache
def load(header: str, expression: str, arch: str, headers: Path | None = None) -> ptxrun.Function:
    """A kernel's PTX, from the cache or compiled; ``headers`` replaces ``csrc/include``."""
    image, symbol = ptx(header, expression, arch, headers)
    return ptxrun.load(image).function(symbol)


def ptx(header: str, expression: str, arch: str, headers: Path | None = None) -> tuple[bytes, str]:
    """PTX with line numbers and the kernel's mangled name."""
    folder = headers or CSRC / "include"
    key = hashlib.sha256(repr((header, expression, arch, nvrtc.OPTIONS)).encode())
    for path in sorted(folder.rglob("*.*h")):
        key.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    target = cache_folder() / f"{header}-{key.hexdigest()[:24]}.ptx"
    if not target.exists():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nvrtc, "_include_folder", lambda: folder)
            compiled = nvrtc.compile_program(
                nvrtc.source_of(header), [expression], arch, ["-lineinfo"]
            )
        with tempfile.NamedTemporaryFile(dir=cache_folder(), delete=False) as file:
            file.write(compiled.symbols[0].encode() + b"\n" + compiled.image)
        os.replace(file.name, target)
    symbol, image = target.read_bytes().split(b"\n", 1)
    return image, symbol.decode()


@functools.cache
def nvcc_modules(nvcc: str, arch: str) -> list[ptxrun.Module]:
    """All of csrc/cuda as nvcc compiles it, with the flags of ``setup.py``; takes a minute."""

    def compiled(source: Path) -> ptxrun.Module:
        with tempfile.NamedTemporaryFile(suffix=".ptx") as file:
            command = [nvcc, "-std=c++17", "-O3", "-lineinfo", f"-I{CSRC}", f"-I{CSRC / 'include'}"]
            command += [f"-arch={arch}", "-ptx", str(source), "-o", file.name]
            subprocess.run(command, check=True)
            return ptxrun.load(Path(file.name).read_bytes())

    sources = [path for path in sorted((CSRC / "cuda").glob("*.cu")) if path.stem != "device"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compiled, sources))


@functools.cache
def expression_of(symbol: str) -> tuple[str, str]:
    """Header and C++ name inside namespace dd2 of a kernel's mangled name."""
    match = re.fullmatch(r"_ZN3dd2(\d+)(\w+)", symbol)
    assert match, symbol
    length = int(match[1])
    name, rest = match[2][:length], match[2][length:]
    header = header_of(name)
    arguments = re.match(r"I((?:L(?:NS_9LogitTypeE|[ib])\d+E)+)E", rest)
    if not arguments:
        return header, name
    values = [
        f"LogitType({value})" if kind.startswith("NS_")
        else value if kind == "i" else ("false", "true")[int(value)]
        for kind, value in re.findall(r"L(NS_9LogitTypeE|[ib])(\d+)E", arguments[1])
    ]  # fmt: skip
    return header, f"{name}<{', '.join(values)}>"
