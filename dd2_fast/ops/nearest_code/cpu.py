"""The nearest code by the C++ kernel of ``csrc/cpu/nearest_code.cpp``."""

from __future__ import annotations

from torch import Tensor

from ..native import cpu_launcher
from . import native


def nearest_code(x: Tensor, codebook: Tensor) -> Tensor:
    """Indices; arguments as in :mod:`.reference`."""
    return native.run(cpu_launcher("nearest_code"), x, codebook)
