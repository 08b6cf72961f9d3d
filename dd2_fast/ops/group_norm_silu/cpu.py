"""Group norm by the C++ kernel of ``csrc/cpu/group_norm_silu.cpp``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..native import cpu_launcher
from . import native


def group_norm_silu(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Sum and result; arguments as in :mod:`.reference`."""
    return native.run(cpu_launcher("group_norm_silu"), x, *arguments)
