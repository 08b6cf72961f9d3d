"""The draw by the kernel of ``csrc/include/dd2/sample_code.cuh``, compiled by NVRTC."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..launch import cupy_launcher
from . import native


def sample_code(logits: Tensor, *arguments: Any) -> Tensor:
    """Codes; arguments as in :mod:`.reference`."""
    return native.run(cupy_launcher("sample_code", logits.device), logits, *arguments)
