"""The small generator by the CUDA kernel of ``csrc/include/dd2/small_generator.cuh``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..native import Launch, cuda_launcher
from . import native


def launcher(device: torch.device) -> Launch:
    """The kernel on the current stream of a device."""
    return cuda_launcher("small_generator", device)


def small_generator(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Embeddings and images; arguments as in :mod:`.reference`."""
    return native.run(launcher(x.device), x, *arguments)
