"""The conditional score by the C++ kernel of ``csrc/cpu/conditional_score.cpp``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..native import cpu_launcher
from . import native


def conditional_x0(*arguments: Any) -> Tensor:
    """Posterior mean; arguments as in :mod:`.reference`."""
    return native.run(cpu_launcher("conditional_score"), None, *arguments)


def conditional_x0_vjp(grad: Tensor, *arguments: Any) -> Tensor:
    """``J grad``; arguments as in :mod:`.reference`."""
    return native.run(cpu_launcher("conditional_score"), grad, *arguments)
