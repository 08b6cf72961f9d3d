"""Attention by the CUDA kernel of ``csrc/include/dd2/block_causal_attention.cuh``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..native import cuda_launcher
from . import native


def block_causal_attention(qkv: Tensor, *arguments: Any) -> Tensor:
    """Mixed values; arguments as in :mod:`.reference`."""
    return native.run(cuda_launcher("block_causal_attention", qkv.device), qkv, *arguments)
