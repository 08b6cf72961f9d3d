"""Group norm by the CUDA kernels of ``csrc/include/dd2/group_norm_silu.cuh``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..native import cuda_launcher
from . import native


def group_norm_silu(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Sum and result; arguments as in :mod:`.reference`."""
    return native.run_on_gpu(cuda_launcher("group_norm_silu", x.device), x, *arguments)
