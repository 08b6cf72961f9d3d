"""The conditional score by the CUDA kernels of ``csrc/include/dd2``, compiled by NVRTC."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..launch import cupy_launcher
from . import native


def conditional_x0(x_t: Tensor, *arguments: Any) -> Tensor:
    """Posterior mean; arguments as in :mod:`.reference`."""
    return native.run(cupy_launcher("conditional_score", x_t.device), None, x_t, *arguments)


def conditional_x0_vjp(grad: Tensor, x_t: Tensor, *arguments: Any) -> Tensor:
    """``J grad``; arguments as in :mod:`.reference`."""
    return native.run(cupy_launcher("conditional_score", x_t.device), grad, x_t, *arguments)
