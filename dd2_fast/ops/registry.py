"""Which backends exist, which of them can run here, and the choice between them.

A backend of operator ``op`` is the module ``dd2_fast/ops/<op>/<backend>.py`` (the ``torch`` backend
is ``reference.py``); all of them define the same functions. A named backend that cannot run, or
that the operator does not have, raises an error that says why; nothing falls back.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from ..ambient import outside_autocast
from . import extension, nvrtc

BACKENDS = ("cuda", "cupy", "triton", "cpu", "torch")
_LOW_PRECISION = (torch.float32, torch.bfloat16, torch.float16)
_NONE: Mapping[str, str | None] = {}


def _cpu_unavailable(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"runs on CPU tensors only, not on {device.type}"
    return extension.load()[1]


def _cuda_unavailable(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"runs on CUDA tensors only, not on {device.type}"
    module, reason = extension.load()
    if module is None:
        return reason
    if not module.cuda_architectures:
        return "the extension was built without CUDA (no nvcc found, or DD2_FAST_CUDA=0)"
    reason = _gpu_unusable(device)
    if reason is not None:
        return reason
    with torch.cuda.device(device):
        error = module.cuda_unusable()  # the driver may be older than the extension's CUDA
    built_for = ", ".join(module.cuda_architectures)
    return error and f"the extension, built for {built_for}, cannot run here: {error}"


def _cupy_unavailable(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"runs on CUDA tensors only, not on {device.type}"
    reason = extension.load()[1]
    if reason is not None:
        return f"its launches are planned by the extension's C++ part: {reason}"
    return _gpu_unusable(device) or nvrtc.unusable()


def _gpu_unusable(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"needs compute capability 8.0 or newer, the device has {major}.{minor}"
    return None


def _triton_unavailable(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"runs on CUDA tensors only, not on {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return _gpu_unusable(device)


_UNAVAILABLE: dict[str, Callable[[torch.device], str | None]] = {
    "cuda": _cuda_unavailable,
    "cupy": _cupy_unavailable,
    "triton": _triton_unavailable,
    "cpu": _cpu_unavailable,
    "torch": lambda device: None,
}


def available_backends(device: torch.device | str | None = None) -> dict[str, str | None]:
    """Every backend with None where it can run on ``device``, else the reason why not.

    Args:
        device: the device tensors will be on; default CUDA where torch sees one, else the CPU.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    return {name: _UNAVAILABLE[name](device) for name in BACKENDS}


@functools.cache
def _reason(name: str, device: torch.device) -> str | None:
    return _UNAVAILABLE[name](device)


def _unusable(op: str, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if not _exists(op, name):
        return f"{op} has no {name!r} backend"
    if name != "torch" and dtype not in _LOW_PRECISION:
        return f"computes in float32, not in {str(dtype).removeprefix('torch.')}"
    return _reason(name, device)


_default = ""


@contextmanager
def default_backend(name: str | None) -> Iterator[None]:
    """Operators called without ``backend=`` take this one inside the block, in every thread: a
    backward pass runs in threads of its own. None leaves things as they are.

    Raises:
        ValueError: no such backend.
    """
    global _default
    if name is not None and name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    before, _default = _default, name or _default
    try:
        yield
    finally:
        _default = before


def exact_products(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` of tensors, the first on the device that counts, outside of autocast: operators
    compute in the dtype that they document."""

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        with outside_autocast(next(a.device for a in arguments if isinstance(a, torch.Tensor))):
            return function(*arguments)

    return run


def resolve(
    op: str,
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    unfit: Mapping[str, str | None] = _NONE,
) -> ModuleType:
    """The module that runs ``op``; ``backend=""`` takes that of :func:`default_backend`,
    DD2_FAST_BACKEND or the first usable. ``unfit``: why backends cannot take this very call."""
    named = backend or _default
    backend = named or os.environ.get("DD2_FAST_BACKEND", "")
    if backend:
        if backend not in BACKENDS:
            source = "backend" if named else "DD2_FAST_BACKEND"
            raise ValueError(
                f"{source}: expected one of {', '.join(map(repr, BACKENDS))}, got {backend!r}"
            )
        reason = _unusable(op, backend, device, dtype) or unfit.get(backend)
        if reason is not None:
            raise RuntimeError(f"backend {backend!r} cannot run {op}: {reason}")
    else:
        backend = next(
            name
            for name in BACKENDS
            if _unusable(op, name, device, dtype) is None and unfit.get(name) is None
        )
        if backend == "torch" and extension.load()[0] is None:
            _warn_reference_only()
    return _module(op, backend)


def has_kernel(op: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a call of ``op`` without ``backend=`` would run compiled code here."""
    return _has_kernel(op, named(), device, dtype)


def named() -> str:
    """The backend that calls without ``backend=`` take; "" for the first usable."""
    return _default or os.environ.get("DD2_FAST_BACKEND", "")


@functools.cache
def _has_kernel(op: str, named: str, device: torch.device, dtype: torch.dtype) -> bool:
    names = (named,) if named in BACKENDS else BACKENDS
    return any(n != "torch" and _unusable(op, n, device, dtype) is None for n in names)


@functools.cache
def _warn_reference_only() -> None:
    warnings.warn(
        f"{extension.load()[1]}: operators run on the plain torch reference, slower",
        RuntimeWarning,
        stacklevel=2,
    )


def _name(op: str, backend: str) -> str:
    return f"dd2_fast.ops.{op}.{'reference' if backend == 'torch' else backend}"


@functools.cache
def _exists(op: str, backend: str) -> bool:
    return importlib.util.find_spec(_name(op, backend)) is not None


@functools.cache
def _module(op: str, backend: str) -> ModuleType:
    return importlib.import_module(_name(op, backend))
