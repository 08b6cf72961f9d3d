"""``torch.library`` definition of the attention: schema, fake and dispatch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import registry

_library = torch.library.Library("dd2_fast", "FRAGMENT")
_library.define(
    "block_causal_attention(Tensor qkv, int[] ends, Tensor? gain, Tensor? rotary, bool strict, "
    "float scale, str backend) -> Tensor"
)


@registry.exact_products
def _forward(
    qkv: Tensor, ends: Sequence[int], gain: Tensor | None, rotary: Tensor | None, strict: bool,
    scale: float, backend: str,
) -> Tensor:  # fmt: skip
    module = registry.resolve("block_causal_attention", backend, qkv.device, qkv.dtype)
    return module.block_causal_attention(qkv, ends, gain, rotary, strict, scale)


def _fake(qkv: Tensor, *rest: object) -> Tensor:
    batch, count, _, heads, size = qkv.shape
    return qkv.new_empty(batch, count, heads * size)


for _key in ("CPU", "CUDA"):
    _library.impl("block_causal_attention", _forward, _key)
torch.library.register_fake("dd2_fast::block_causal_attention", _fake, lib=_library)
