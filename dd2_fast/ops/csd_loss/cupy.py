"""The CSD loss by the kernel of ``csrc/include/dd2/conditional_score.cuh``, compiled by NVRTC;
never by tensor cores, which ``cuda`` takes where they pay."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..conditional_score.plan import plan
from ..launch import cupy_launcher
from . import native


def csd_loss(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and gradients; arguments as in :mod:`.reference`."""
    return native.run(cupy_launcher(plan, x.device), x, *arguments)
