"""The flow ODE by the kernel of ``csrc/include/dd2/flow_solve.cuh``, compiled by NVRTC."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..launch import cupy_launcher
from . import native


def flow_solve(noise: Tensor, *arguments: Any) -> Tensor:
    """Codes ``[R, M]``; arguments as in :mod:`.reference`."""
    return native.run(cupy_launcher("flow_solve", noise.device), noise, *arguments)
