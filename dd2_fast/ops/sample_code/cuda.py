"""The draw by the CUDA kernel of ``csrc/include/dd2/sample_code.cuh``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..native import cuda_launcher
from . import native


def sample_code(logits: Tensor, *arguments: Any) -> Tensor:
    """Codes; arguments as in :mod:`.reference`."""
    return native.run(cuda_launcher("sample_code", logits.device), logits, *arguments)
