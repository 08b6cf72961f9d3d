"""The logit student's loss by the C++ kernels of ``csrc/cpu/logit_distillation_loss.cpp``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..native import cpu_launcher
from . import native


def logit_distillation_loss(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Loss and statistics; arguments as in :mod:`.reference`."""
    return native.run(cpu_launcher("logit_distillation_loss"), *arguments)


def logit_distillation_loss_backward(*arguments: Any) -> Tensor:
    """The gradient; arguments as in :mod:`.reference`."""
    return native.run_backward(cpu_launcher("logit_distillation_loss"), *arguments)
