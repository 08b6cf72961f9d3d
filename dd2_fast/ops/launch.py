"""Launching NVRTC's kernels on torch's streams, as the extension's plans say (``csrc/plan``), with
plain C structs as their arguments."""

from __future__ import annotations

import ctypes
import functools
import re
from typing import Any

import torch

from . import extension, nvrtc
from .native import Launch, give_workspace


@functools.cache
def _load_kernel(device: int, kernel: str) -> tuple[int, int]:
    """The CUfunction of a kernel, as C++ names it inside namespace dd2, and the most bytes of
    dynamic shared memory that it can have."""
    cuda = nvrtc.cupy().cuda
    driver, supported = cuda.driver, cuda.nvrtc.getSupportedArchs()
    arch = nvrtc.architecture(torch.cuda.get_device_capability(device), supported)
    image, symbol = nvrtc.cached_image(header_of(kernel), kernel, arch)
    function = driver.moduleGetFunction(driver.moduleLoadData(image), symbol)
    static = driver.funcGetAttribute(driver.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function)
    most = _device_size(device)[1] - static
    # Once for all launches: threads that set what their own need would take it from each other.
    driver.funcSetAttribute(function, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most)
    return function, most


def header_of(kernel: str) -> str:
    """The header that defines it: ``X_kernel`` or ``X_fwd_kernel`` is in ``dd2/X.cuh``."""
    return re.sub(r"(_fwd)?_kernel(<.*)?$", "", kernel)


@functools.cache
def _device_size(device: int) -> tuple[int, int]:
    """Multiprocessors, and bytes of shared memory that a block can have."""
    runtime = nvrtc.cupy().cuda.runtime
    names = runtime.cudaDevAttrMultiProcessorCount, runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin
    processors, shared = (runtime.deviceGetAttribute(name, device) for name in names)
    return processors, shared


def cupy_launcher(op: str, device: torch.device) -> Launch:
    """The CUDA kernels of ``op``, compiled by NVRTC, on the current stream of ``device``."""
    plan = getattr(extension.native(), f"plan_{op}")

    def launch(params: ctypes.Structure) -> None:
        address = ctypes.addressof(params)
        with torch.cuda.device(device):
            index = torch.cuda.current_device()
            size, launches = plan(address, *_device_size(index))
            workspace = give_workspace(params, size, device)
            if workspace is not None:
                _, launches = plan(address, *_device_size(index))
            _run(launches, address, index)

    return launch


def _run(launches: list[tuple[Any, ...]], params: int, device: int) -> None:
    if not launches:
        return
    cuda = nvrtc.cupy().cuda
    cuda.runtime.setDevice(device)  # else a new thread has no context for the driver
    arguments = (ctypes.c_void_p * 1)(params)
    stream = torch.cuda.current_stream().cuda_stream
    for kernel, grid, threads, shared in launches:
        function, most = _load_kernel(device, kernel)
        if shared > most:
            raise RuntimeError(
                f"{kernel} needs {shared} bytes of shared memory beside its own, the device has "
                f"{most}"
            )
        cuda.driver.launchKernel(
            function, *grid, 1, threads, 1, 1, shared, stream, ctypes.addressof(arguments), 0
        )
