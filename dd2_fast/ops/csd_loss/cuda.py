"""The CSD loss by the CUDA kernels of ``csrc/include/dd2``, as the conditional score's epilogue."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..native import cuda_launcher
from . import native


def csd_loss(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and gradients; arguments as in :mod:`.reference`."""
    return native.run(cuda_launcher("conditional_score", x.device), x, *arguments)
