"""The flow ODE by the CUDA kernel of ``csrc/include/dd2/flow_solve.cuh``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..native import cuda_launcher
from . import native


def flow_solve(noise: Tensor, *arguments: Any) -> Tensor:
    """Codes ``[R, M]``; arguments as in :mod:`.reference`."""
    return native.run(cuda_launcher("flow_solve", noise.device), noise, *arguments)
