"""The logit student's loss by the CUDA kernels of ``csrc/include/dd2``, compiled by NVRTC."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..launch import cupy_launcher
from . import native


def logit_distillation_loss(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Loss and statistics; arguments as in :mod:`.reference`."""
    launch = cupy_launcher("logit_distillation_loss", logits.device)
    return native.run(launch, logits, *arguments)


def logit_distillation_loss_backward(grad: Tensor, *arguments: Any) -> Tensor:
    """The gradient; arguments as in :mod:`.reference`."""
    launch = cupy_launcher("logit_distillation_loss", grad.device)
    return native.run_backward(launch, grad, *arguments)
