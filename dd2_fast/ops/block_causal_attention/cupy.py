"""Attention by the kernel of ``csrc/include/dd2/block_causal_attention.cuh``, compiled by NVRTC."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..launch import cupy_launcher
from . import native


def block_causal_attention(qkv: Tensor, *arguments: Any) -> Tensor:
    """Mixed values; arguments as in :mod:`.reference`."""
    return native.run(cupy_launcher("block_causal_attention", qkv.device), qkv, *arguments)
