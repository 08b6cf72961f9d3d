"""What LlamaGen's networks work out once for inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ops import block_causal_attention
from ..cache import KVCache
from ..folded import Folded, FoldedUpsampling, JoinedLinear, convolution
from ..kernels import (
    Pending,
    attention,
    has_fused_attention,
    prepares_fused_norm,
    takes_fused_attention,
)
from ..norms import FusedNorm, FusedResidual, NormSiLU, Unsummed, before_norm, convolved
from .layers import Attention, Block, FeedForward, add_rms_norm
from .vq import AttentionBlock, ResidualBlock, Upsample


class FusedAttention(nn.Module):
    """:class:`Attention` of a whole sequence with rotation and causal attention in one kernel."""

    def __init__(self, source: Attention) -> None:
        super().__init__()
        self._sources = (source,)  # not a submodule
        self.heads, self.wqkv, self.wo = source.heads, source.wqkv, source.wo

    def forward(self, x: Tensor, rotation: Tensor, cache: KVCache | None = None) -> Tensor:
        if cache is None:
            qkv = self.wqkv(x).unflatten(-1, (3, self.heads, -1))
            if takes_fused_attention(qkv):
                return self.wo(block_causal_attention(qkv, rotary=rotation))
        return self._sources[0](x, rotation, cache)


def _attention(source: Attention) -> nn.Module:
    return FusedAttention(source) if has_fused_attention(source.wo.weight) else source


class FoldedFeedForward(nn.Module):
    """:class:`FeedForward` with the first two products as one."""

    def __init__(self, source: FeedForward) -> None:
        super().__init__()
        self.w13, self.w2 = JoinedLinear(source.w1, source.w3), source.w2

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w13(x).chunk(2, dim=-1)
        return self.w2(F.silu(gate).mul_(value))


class FusedBlock(nn.Module):
    """:class:`Block` whose last addition is left to the next norm."""

    def __init__(self, source: Block) -> None:
        super().__init__()
        self.attention = _attention(source.attention)
        self.feed_forward = FoldedFeedForward(source.feed_forward)
        self.attention_norm, self.ffn_norm = source.attention_norm, source.ffn_norm

    def forward(
        self, h: Tensor | Pending, rotation: Tensor, cache: KVCache | None = None
    ) -> Pending:
        h, y = add_rms_norm(h, self.attention_norm)
        h, y = add_rms_norm(Pending(h, self.attention(y, rotation, cache)), self.ffn_norm)
        return Pending(h, self.feed_forward(y))


def _block(source: Block) -> nn.Module:
    return FusedBlock(source) if prepares_fused_norm(source.ffn_norm.weight) else source


class FoldedAttentionBlock(Folded):
    """:class:`AttentionBlock` with queries, keys and values by one convolution."""

    weight: Tensor
    bias: Tensor

    def __init__(self, source: AttentionBlock) -> None:
        super().__init__(source)
        self.norm, self.proj_out = FusedNorm(source.norm), before_norm(source.proj_out)

    def fold(self) -> dict[str, Tensor]:
        three = self.source.q, self.source.k, self.source.v
        return {
            "weight": torch.cat([one.weight for one in three]).detach(),
            "bias": torch.cat([one.bias for one in three]).detach(),
        }

    def forward(self, x: Tensor | Unsummed) -> Unsummed:
        x, y = self.norm.with_sum(x)
        qkv = F.conv2d(y, self.weight, self.bias)
        q, k, v = qkv.flatten(2).unflatten(1, (3, 1, -1)).transpose(-1, -2).unbind(1)
        mixed = attention(q, k, v)[:, 0]
        mixed = mixed.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        return convolved(self.proj_out, mixed, x)


PREPARED: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    Block: _block,
    Attention: _attention,
    FeedForward: FoldedFeedForward,
    AttentionBlock: FoldedAttentionBlock,
    ResidualBlock: FusedResidual,
    NormSiLU: FusedNorm,
    Upsample: FoldedUpsampling,
    nn.Conv2d: convolution,
}
