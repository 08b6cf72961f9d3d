"""The conditional score by the CUDA kernel of ``csrc/include/dd2/conditional_score.cuh``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import extension
from . import native


def _launch(device: torch.device) -> Any:
    def launch(params: Any) -> None:
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream().cuda_stream
            extension.native().cuda_conditional_score(params, stream)

    return launch


def conditional_x0(x_t: Tensor, *arguments: Any) -> Tensor:
    """Posterior mean; arguments as in :mod:`.reference`."""
    return native.run(_launch(x_t.device), None, x_t, *arguments)


def conditional_x0_vjp(grad: Tensor, x_t: Tensor, *arguments: Any) -> Tensor:
    """``J grad``; arguments as in :mod:`.reference`."""
    return native.run(_launch(x_t.device), grad, x_t, *arguments)
