"""The flow ODE by the kernel of ``csrc/include/dd2/flow_solve.cuh``, compiled by NVRTC."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from ..launch import cupy_launcher, processor_count
from . import native
from .plan import plan


def flow_solve(noise: Tensor, *arguments: Any) -> Tensor:
    """Codes ``[R, M]``; arguments as in :mod:`.reference`."""
    device = noise.device
    ways = partial(plan, processors=processor_count(device))
    return native.run(cupy_launcher(ways, device), noise, *arguments)
