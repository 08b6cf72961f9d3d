"""The GPU backends of the operators on CPU tensors: what they launch runs in an executor."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compiled.executor import Executor
from native.build import CSRC, operators
from native.test_plans import workspace_size
from ptxrun import Function
from ptxrun.build import cache_folder, compile_shared

from dd2_fast.ops import extension, launch, nvrtc, registry
from dd2_fast.ops.conditional_score.native import ConditionalScoreParams

RUNTIME = Path(__file__).resolve().parent / "runtime"
MULTIPROCESSORS, SHARED_OPTIN = 16, 97  # cudaDeviceAttr


@contextmanager
def installed(backend: str, executor: Executor) -> Iterator[None]:
    """Inside, ``backend`` takes CPU tensors; new tensors that nothing fills are NaN."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as patch:
        _install(patch, backend, executor)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            _forget_device()


def _install(patch: pytest.MonkeyPatch, backend: str, executor: Executor) -> None:
    executor.memory.install(patch)
    reason = registry._reason
    patch.setattr(
        registry, "_reason", lambda name, device: None if name == backend else reason(name, device)
    )
    patch.setitem(registry._UNAVAILABLE, backend, lambda device: None)
    patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    patch.setattr(torch.cuda, "current_device", lambda: 0)
    capability = executor.arch // 10, executor.arch % 10
    patch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    stream = SimpleNamespace(cuda_stream=1)
    patch.setattr(torch.cuda, "current_stream", lambda *device: stream)
    patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    _forget_device()
    {"cuda": _install_cuda, "cupy": _install_cupy, "triton": _install_triton}[backend](
        patch, executor
    )


def _forget_device() -> None:
    """What the ``cupy`` backend keeps of a device, and which kernels there are on it."""
    for cached in (launch._load_kernel, launch._device_size, registry._has_kernel):
        cached.cache_clear()


class Launchers:
    """``dd2_fast._C`` with the launchers of csrc/cuda and no CPU kernels."""

    def __init__(self, executor: Executor) -> None:
        sources = [*RUNTIME.glob("*.cpp"), *CSRC.glob("plan/*.cpp"), *CSRC.glob("cuda/*.cu")]
        headers = [*RUNTIME.glob("*.h"), *CSRC.rglob("*.h"), *CSRC.rglob("*.cuh")]
        includes = [f"-I{folder}" for folder in (RUNTIME, CSRC, CSRC / "include")]
        flags = ["-std=c++17", "-O0", "-fPIC", "-fno-gnu-unique", *includes]
        flags += ["-include", "cuda_runtime.h", "-x", "c++"]
        path = compile_shared("launchers", sorted(sources), flags, sorted(headers))
        self._library = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
        self._callbacks = _callbacks(executor)
        self._library.set_callbacks(self._callbacks)
        self.cuda_architectures = (f"sm_{executor.arch}",)
        for op in operators():
            setattr(self, f"cuda_{op}", self._launcher(op))
            workspace = getattr(self._library, f"workspace_{op}")
            workspace.restype, workspace.argtypes = ctypes.c_longlong, [ctypes.c_void_p]
            setattr(self, f"cuda_workspace_{op}", workspace)
        if executor.tensor_cores:
            self.cuda_workspace_conditional_score = workspace_if_it_fits

    def _launcher(self, op: str) -> Callable[[int, int], None]:
        function = getattr(self._library, f"cuda_{op}")
        function.restype = ctypes.c_char_p
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p]

        def run(params: int, stream: int) -> None:
            error = function(params, stream)
            if error is not None:
                raise RuntimeError(error.decode())

        return run

    def cuda_unusable(self) -> None:
        return None


def workspace_if_it_fits(address: int) -> int:
    """Bytes of the tensor cores' workspace; 0 for codes too long for them."""
    params = ConditionalScoreParams.from_address(address)
    return workspace_size(params) if params.dim <= (32 if params.direction else 64) else 0


class Callbacks(ctypes.Structure):
    """As in ``cuda_runtime.h``."""

    UINTS = ctypes.POINTER(ctypes.c_uint)
    LAUNCH = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_char_p, UINTS, UINTS, ctypes.c_void_p, ctypes.c_size_t,
        ctypes.c_size_t,
    )  # fmt: skip
    STATIC = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_char_p)
    ALLOW = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
    DEVICE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
    _fields_ = [("launch", LAUNCH), ("static", STATIC), ("allow", ALLOW), ("device", DEVICE)]


def _callbacks(executor: Executor) -> Callbacks:
    allowed: dict[bytes, int] = {}
    unasked = 48 * 1024

    def function_of(kernel: bytes) -> Function:
        return executor.kernel_named(kernel.decode())

    def run(kernel: bytes, grid: Any, block: Any, params: int, size: int, shared: int) -> int:
        function = function_of(kernel)
        static = function.lowered.static_shared
        if shared > allowed.get(kernel, unasked - static):
            return 1
        executor.launch(function, grid[:3], block[:3], ctypes.string_at(params, size), shared)
        return 719 if executor.log[-1][1] else 0

    def allow(kernel: bytes, size: int) -> int:
        if size + function_of(kernel).lowered.static_shared > executor.shared_limit:
            return 1
        # Launchers ask for what the device says that it has.
        static = function_of(kernel).lowered.static_shared
        allowed[kernel] = executor.shared_limit - static if executor.streamed else size
        return 0

    def attribute(which: int) -> int:
        for_rows = 0 if executor.streamed else executor.shared_limit
        return {MULTIPROCESSORS: executor.processors, SHARED_OPTIN: for_rows}[which]

    return Callbacks(
        Callbacks.LAUNCH(run),
        Callbacks.STATIC(lambda kernel: function_of(kernel).lowered.static_shared),
        Callbacks.ALLOW(allow),
        Callbacks.DEVICE(attribute),
    )


def _install_cuda(patch: pytest.MonkeyPatch, executor: Executor) -> None:
    launchers: Any = Launchers(executor)
    patch.setitem(sys.modules, "dd2_fast._C", launchers)
    patch.setattr(extension, "load", lambda: (launchers, None))


class Driver:
    """``cupy.cuda.driver``; a function's handle is its place in ``functions``."""

    CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.functions: list[Function] = []

    def moduleLoadData(self, image: Function) -> Function:
        return image

    def moduleGetFunction(self, module: Function, name: str) -> int:
        self.functions.append(module)
        return len(self.functions) - 1

    def funcGetAttribute(self, attribute: int, function: int) -> int:
        return self.functions[function].lowered.static_shared

    def funcSetAttribute(self, function: int, attribute: int, value: int) -> None:
        static = self.functions[function].lowered.static_shared
        assert static + value <= self.executor.shared_limit

    def launchKernel(self, f: int, *sizes: int) -> None:
        grid, block, (shared, _, params, _) = sizes[:3], sizes[3:6], sizes[6:]
        function = self.functions[f]
        address = ctypes.c_void_p.from_address(params).value or 0
        data = ctypes.string_at(address, function.lowered.param_bytes)
        self.executor.launch(function, grid, block, data, shared)


def _install_cupy(patch: pytest.MonkeyPatch, executor: Executor) -> None:
    attributes = {MULTIPROCESSORS: executor.processors, SHARED_OPTIN: executor.shared_limit}
    runtime = SimpleNamespace(
        cudaDevAttrMultiProcessorCount=MULTIPROCESSORS,
        cudaDevAttrMaxSharedMemoryPerBlockOptin=SHARED_OPTIN,
        setDevice=lambda device: None,
        deviceGetAttribute=lambda attribute, device: attributes[attribute],
    )
    compiler = SimpleNamespace(getSupportedArchs=lambda: (executor.arch,))
    cuda = SimpleNamespace(nvrtc=compiler, driver=Driver(executor), runtime=runtime)
    patch.setattr(launch, "nvrtc", SimpleNamespace(
        cupy=lambda: SimpleNamespace(cuda=cuda), architecture=nvrtc.architecture,
        cached_image=lambda header, kernel, arch: image(header, kernel),
    ))  # fmt: skip

    def image(header: str, kernel: str) -> tuple[Function, str]:
        function = executor.kernel(header, kernel)
        return function, function.name


def _install_triton(patch: pytest.MonkeyPatch, executor: Executor) -> None:
    from triton.backends.nvidia.compiler import CUDABackend

    patch.setenv("TRITON_CACHE_DIR", str(cache_folder() / "triton"))
    # PTX is what runs: nothing waits for ptxas.
    patch.setattr(CUDABackend, "make_cubin", lambda self, ptx, *options: ptx.encode())
    importlib.import_module("compiled.triton_driver").install(patch, executor)
    score = importlib.import_module("dd2_fast.ops.conditional_score.triton")
    patch.setattr(score, "compute_major", lambda tensor: executor.arch // 10)
