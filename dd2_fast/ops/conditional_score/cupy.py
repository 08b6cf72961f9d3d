"""The conditional score by the kernel of ``csrc/include/dd2/conditional_score.cuh``, compiled by
NVRTC; never by tensor cores, which ``cuda`` takes where they pay."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..launch import cupy_launcher
from . import native
from .plan import plan


def conditional_x0(x_t: Tensor, *arguments: Any) -> Tensor:
    """Posterior mean; arguments as in :mod:`.reference`."""
    return native.run(cupy_launcher(plan, x_t.device), None, x_t, *arguments)


def conditional_x0_vjp(grad: Tensor, x_t: Tensor, *arguments: Any) -> Tensor:
    """``J grad``; arguments as in :mod:`.reference`."""
    return native.run(cupy_launcher(plan, x_t.device), grad, x_t, *arguments)
