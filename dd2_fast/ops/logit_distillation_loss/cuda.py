"""The logit student's loss by the CUDA kernels of ``csrc/include/dd2``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..native import cuda_launcher
from . import native


def logit_distillation_loss(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Loss and statistics; arguments as in :mod:`.reference`."""
    launch = cuda_launcher("logit_distillation_loss", logits.device)
    return native.run(launch, logits, *arguments)


def logit_distillation_loss_backward(grad: Tensor, *arguments: Any) -> Tensor:
    """The gradient; arguments as in :mod:`.reference`."""
    launch = cuda_launcher("logit_distillation_loss", grad.device)
    return native.run_backward(launch, grad, *arguments)
