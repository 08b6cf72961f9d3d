"""Launching NVRTC's kernels on torch's streams, with plain C structs as their arguments."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import nvrtc
from .native import Launch

THREADS = 256  # dd2::kThreads


@dataclass(frozen=True)
class Way:
    """One way to run an operator: a kernel of ``dd2/<header>.cuh``, its grid, its shared memory."""

    header: str
    kernel: str  # a template instantiation, as C++ names it inside namespace dd2
    grid: tuple[int, int]
    shared: int = 0  # bytes of dynamic shared memory


@dataclass(frozen=True)
class Kernel:
    """A kernel loaded on one device."""

    function: int  # CUfunction
    static_shared: int  # bytes


@functools.cache
def _load_kernel(device: int, header: str, kernel: str) -> Kernel:
    cuda = nvrtc.cupy().cuda
    driver, supported = cuda.driver, cuda.nvrtc.getSupportedArchs()
    arch = nvrtc.architecture(torch.cuda.get_device_capability(device), supported)
    image, symbol = nvrtc.cached_image(header, kernel, arch)
    function = driver.moduleGetFunction(driver.moduleLoadData(image), symbol)
    static = driver.funcGetAttribute(driver.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function)
    # Once for all launches: threads that set what their own need would take it from each other.
    driver.funcSetAttribute(
        function,
        driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
        _shared_limit(device) - static,
    )
    return Kernel(function, static)


@functools.cache
def _shared_limit(device: int) -> int:
    """Bytes of shared memory, static and dynamic, that a block can have."""
    runtime = nvrtc.cupy().cuda.runtime
    return runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, device)


@functools.cache
def _processor_count(device: int) -> int:
    runtime = nvrtc.cupy().cuda.runtime
    return runtime.deviceGetAttribute(runtime.cudaDevAttrMultiProcessorCount, device)


def processor_count(device: torch.device) -> int:
    """Multiprocessors of the device."""
    with torch.cuda.device(device):
        return _processor_count(torch.cuda.current_device())


def _choose(ways: Sequence[Way], device: int) -> tuple[Way, Kernel]:
    """The first that fits the device's shared memory."""
    limit = _shared_limit(device)
    for way in ways:
        if way.shared <= limit:
            kernel = _load_kernel(device, way.header, way.kernel)
            if kernel.static_shared + way.shared <= limit:
                return way, kernel
    raise RuntimeError(
        f"{way.kernel} needs {way.shared} bytes of shared memory beside its own, "
        f"the device has {limit}"
    )


def launch(ways: Sequence[Way], params: ctypes.Structure, device: torch.device) -> None:
    """Run the first of ``ways`` that fits on the current stream; nothing where there is none."""
    if not ways:
        return
    cuda = nvrtc.cupy().cuda
    with torch.cuda.device(device):
        index = torch.cuda.current_device()
        cuda.runtime.setDevice(index)  # else a new thread has no context for the driver
        way, kernel = _choose(ways, index)
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        stream = torch.cuda.current_stream().cuda_stream
        cuda.driver.launchKernel(
            kernel.function, *way.grid, 1, THREADS, 1, 1, way.shared, stream,
            ctypes.addressof(arguments), 0,
        )  # fmt: skip


def cupy_launcher(plan: Callable[[Any], Sequence[Way]], device: torch.device) -> Launch:
    """``launch(params)`` by the ways that ``plan(params)`` gives."""
    return lambda params: launch(plan(params), params, device)
