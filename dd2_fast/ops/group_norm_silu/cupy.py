"""Group norm by the kernels of ``csrc/include/dd2/group_norm_silu.cuh``, compiled by NVRTC."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..launch import cupy_launcher
from . import native


def group_norm_silu(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Sum and result; arguments as in :mod:`.reference`."""
    return native.run_on_gpu(cupy_launcher("group_norm_silu", x.device), x, *arguments)
