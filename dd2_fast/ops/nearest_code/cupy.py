"""The nearest code by the kernel of ``csrc/include/dd2/nearest_code.cuh``, compiled by NVRTC."""

from __future__ import annotations

from torch import Tensor

from ..launch import cupy_launcher
from . import native


def nearest_code(x: Tensor, codebook: Tensor) -> Tensor:
    """Indices; arguments as in :mod:`.reference`."""
    return native.run(cupy_launcher("nearest_code", x.device), x, codebook)
