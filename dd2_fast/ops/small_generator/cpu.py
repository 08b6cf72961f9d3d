"""The small generator by the C++ kernel of ``csrc/cpu/small_generator.cpp``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..native import Launch, cpu_launcher
from . import native


def launcher(device: torch.device) -> Launch:
    """The kernel on torch's number of threads."""
    return cpu_launcher("small_generator")


def small_generator(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Embeddings and images; arguments as in :mod:`.reference`."""
    return native.run(launcher(x.device), x, *arguments)
