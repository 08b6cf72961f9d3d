"""The CSD loss by the C++ kernel of ``csrc/cpu/conditional_score.cpp``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..native import cpu_launcher
from . import native


def csd_loss(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and gradients; arguments as in :mod:`.reference`."""
    return native.run(cpu_launcher("conditional_score"), *arguments)
