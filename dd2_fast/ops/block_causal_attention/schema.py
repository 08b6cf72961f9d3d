"""``torch.library`` definition of the attention: schema, fake and dispatch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import registry
from .native import MOST_BLOCKS

_library = torch.library.Library("dd2_fast", "FRAGMENT")
_library.define(
    "block_causal_attention(Tensor qkv, int[] ends, Tensor? gain, Tensor? rotary, bool strict, "
    "float scale, str backend) -> Tensor"
)

# The most channels of a head that the backends' kernels take, and the most blocks of tokens.
_LARGEST_HEAD = {"cuda": 128, "cupy": 128, "triton": 256}
_MOST_BLOCKS = {"cuda": MOST_BLOCKS, "cupy": MOST_BLOCKS}


def _unfit(size: int, blocks: int) -> dict[str, str | None]:
    """Why backends cannot take such heads or so many blocks."""
    reasons: dict[str, str | None] = {
        name: f"expected at most {most} blocks of tokens, got {blocks}"
        for name, most in _MOST_BLOCKS.items()
        if blocks > most
    }
    return reasons | {
        name: f"expected heads of at most {most} channels, got d = {size}"
        for name, most in _LARGEST_HEAD.items()
        if size > most
    }


@registry.exact_products
def _forward(
    qkv: Tensor, ends: Sequence[int], gain: Tensor | None, rotary: Tensor | None, strict: bool,
    scale: float, backend: str,
) -> Tensor:  # fmt: skip
    unfit = _unfit(qkv.shape[-1], len(ends))
    module = registry.resolve("block_causal_attention", backend, qkv.device, qkv.dtype, unfit)
    return module.block_causal_attention(qkv, ends, gain, rotary, strict, scale)


def _fake(qkv: Tensor, *rest: object) -> Tensor:
    batch, count, _, heads, size = qkv.shape
    return qkv.new_empty(batch, count, heads * size)


for _key in ("CPU", "CUDA"):
    _library.impl("block_causal_attention", _forward, _key)
torch.library.register_fake("dd2_fast::block_causal_attention", _fake, lib=_library)
