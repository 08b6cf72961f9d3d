"""The nearest code by the kernel of ``csrc/include/dd2/nearest_code.cuh``, compiled by NVRTC."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ..launch import cupy_launcher, processor_count
from . import native
from .plan import plan


def nearest_code(x: Tensor, codebook: Tensor) -> Tensor:
    """Indices; arguments as in :mod:`.reference`."""
    ways = partial(plan, processors=processor_count(x.device))
    return native.run(cupy_launcher(ways, x.device), x, codebook)
