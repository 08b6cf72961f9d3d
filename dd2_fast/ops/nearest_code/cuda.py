"""The nearest code by the CUDA kernel of ``csrc/include/dd2/nearest_code.cuh``."""

from __future__ import annotations

from torch import Tensor

from ..native import cuda_launcher
from . import native


def nearest_code(x: Tensor, codebook: Tensor) -> Tensor:
    """Indices; arguments as in :mod:`.reference`."""
    return native.run(cuda_launcher("nearest_code", x.device), x, codebook)
