"""Group norm by the C++ kernel of ``csrc/cpu/group_norm_silu.cpp``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..native import cpu_launcher
from . import native


def group_norm_silu(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Sum and result; arguments as in :mod:`.reference`."""
    return native.run(cpu_launcher("group_norm_silu"), x, *arguments)


def group_norm_silu_(x: Tensor, *arguments: Any) -> None:
    """The same without new memory: the result is in the place of ``x``, the sum in that of the
    residual; both are contiguous, and no gradient flows."""
    native.run(cpu_launcher("group_norm_silu"), x, *arguments, in_place=True)
