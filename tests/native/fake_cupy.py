"""The part of CuPy that the package uses, without a GPU: it compiles nothing, and hands each launch
to a callback instead."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dd2_fast.ops import launch, nvrtc, registry

STREAM = 77
H200_SHARED = 232_448  # bytes a block can have


@dataclass(frozen=True)
class Launch:
    """What a kernel was launched with; ``params`` is the address of its only argument."""

    kernel: str
    params: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    stream: int


class Nvrtc:
    """``cupy.cuda.nvrtc``; a program's image is the list of its kernels."""

    class NVRTCError(RuntimeError):
        pass

    def __init__(self) -> None:
        self.programs: dict[int, SimpleNamespace] = {}
        self.compiled: list[SimpleNamespace] = []
        self.error: str | None = None

    def getVersion(self) -> tuple[int, int]:
        return 13, 0

    def getSupportedArchs(self) -> tuple[int, ...]:
        return 80, 90, 100

    def createProgram(
        self, src: str, name: str, headers: Sequence[bytes], include_names: Sequence[bytes]
    ) -> int:
        handle = 100 + len(self.programs)
        self.programs[handle] = SimpleNamespace(source=src, name=name, kernels=[], options=())
        return handle

    def addNameExpression(self, prog: int, name: str) -> None:
        self.programs[prog].kernels.append(name)

    def compileProgram(self, prog: int, options: Sequence[str]) -> None:
        self.programs[prog].options = tuple(options)
        if self.error:
            raise self.NVRTCError("NVRTC_ERROR_COMPILATION")
        self.compiled.append(self.programs[prog])

    def getProgramLog(self, prog: int) -> str:
        return self.error or ""

    def getLoweredName(self, prog: int, name: str) -> str:
        assert name in self.programs[prog].kernels
        return f"_Z{name}"

    def getCUBIN(self, prog: int) -> bytes:
        return "\n".join(self.programs[prog].kernels).encode()

    def getPTX(self, prog: int) -> bytes:
        return self.getCUBIN(prog)

    def destroyProgram(self, prog: int) -> None:
        self.programs[prog] = SimpleNamespace()


class Runtime:
    """``cupy.cuda.runtime``."""

    cudaDevAttrMultiProcessorCount = 16
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97

    def __init__(self, shared_limit: int, processors: int) -> None:
        self.attributes = {
            self.cudaDevAttrMaxSharedMemoryPerBlockOptin: shared_limit,
            self.cudaDevAttrMultiProcessorCount: processors,
        }
        self.context = False  # the driver has none before the runtime's first call

    def setDevice(self, device: int) -> None:
        assert device == 0
        self.context = True

    def getDeviceCount(self) -> int:
        return 1

    def deviceGetAttribute(self, attrib: int, device: int) -> int:
        assert device == 0
        return self.attributes[attrib]


class Driver:
    """``cupy.cuda.driver``; a module's handle is its place in ``modules``, as a function's."""

    CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8

    def __init__(
        self, runtime: Runtime, on_launch: Callable[[Launch], None], static_shared: int
    ) -> None:
        self.runtime = runtime
        self.on_launch = on_launch
        self.static_shared = static_shared
        self.modules: list[list[str]] = []
        self.functions: list[str] = []
        self.dynamic_shared: dict[int, int] = {}

    def moduleLoadData(self, image: bytes) -> int:
        assert self.runtime.context and image.endswith(b"\0")
        self.modules.append(image[:-1].decode().split("\n"))
        return len(self.modules) - 1

    def moduleGetFunction(self, module: int, funcname: str) -> int:
        assert funcname.removeprefix("_Z") in self.modules[module]
        self.functions.append(funcname.removeprefix("_Z"))
        return len(self.functions) - 1

    def funcGetAttribute(self, attribute: int, f: int) -> int:
        assert attribute == self.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES and self.functions[f]
        return self.static_shared

    def funcSetAttribute(self, f: int, attribute: int, value: int) -> None:
        assert attribute == self.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        assert self.runtime.context
        assert f not in self.dynamic_shared, "threads would take shared memory from each other"
        self.dynamic_shared[f] = value

    def launchKernel(
        self, f: int, grid_dim_x: int, grid_dim_y: int, grid_dim_z: int, block_dim_x: int,
        block_dim_y: int, block_dim_z: int, shared_mem_bytes: int, stream: int,
        kernel_params: int, extra: int,
    ) -> None:  # fmt: skip
        assert shared_mem_bytes <= self.dynamic_shared[f] and extra == 0
        params = ctypes.c_void_p.from_address(kernel_params).value
        assert params is not None
        grid, block = (grid_dim_x, grid_dim_y, grid_dim_z), (block_dim_x, block_dim_y, block_dim_z)
        assert all(type(size) is int and size > 0 for size in (*grid, *block))
        self.on_launch(Launch(self.functions[f], params, grid, block, shared_mem_bytes, stream))


class FakeCupy:
    """``cupy`` on a device whose blocks can have ``shared_limit`` bytes, the kernels' own in it."""

    def __init__(
        self, on_launch: Callable[[Launch], None], shared_limit: int = H200_SHARED,
        static_shared: int = 0, processors: int = 132,
    ) -> None:  # fmt: skip
        runtime = Runtime(shared_limit, processors)
        driver = Driver(runtime, on_launch, static_shared)
        self.cuda = SimpleNamespace(nvrtc=Nvrtc(), driver=driver, runtime=runtime)


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeCupy, cache: Any) -> None:
    """Makes the ``cupy`` backend usable on CPU tensors, through ``fake``."""
    monkeypatch.setattr(nvrtc, "load", lambda: (fake, None))
    monkeypatch.setenv("CUPY_CACHE_DIR", str(cache))
    reason = registry._reason
    monkeypatch.setattr(
        registry, "_reason", lambda name, device: None if name == "cupy" else reason(name, device)
    )
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    stream = SimpleNamespace(cuda_stream=STREAM)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    for cached in ("_load_kernel", "_device_size"):  # a fresh cache for this test alone
        monkeypatch.setattr(launch, cached, functools.cache(getattr(launch, cached).__wrapped__))
