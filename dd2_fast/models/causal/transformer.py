"""The causal transformer that the small teacher, the generator and the guidance network share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...condition import ClassCondition
from ...ops import add_norm_modulate
from ..cache import KVCache
from ..kernels import Linear, causal_attention, has_fused_norm


def _normed(h: Tensor, norm: nn.LayerNorm, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``h``, plus a ``branch``, and its norm: where there is a kernel, in one."""
    if has_fused_norm(h):
        weight, shift = norm.weight, norm.bias
        return add_norm_modulate(h, branch=branch, weight=weight, shift=shift, eps=norm.eps)
    h = h if branch is None else h + branch
    return h, norm(h)


class Block(nn.Module):
    """Pre-LN block: ``h += Attention(LN(h)); h += MLP(LN(h))``, GELU, four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.projection = Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = Linear(width, 4 * width)
        self.contract = Linear(4 * width, width)

    def forward(self, h: Tensor, cache: KVCache | None = None) -> Tensor:
        batch, length, width = h.shape
        _, y = _normed(h, self.attention_norm)
        qkv = self.qkv(y)
        q, k, v = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.append(k, v)
        mixed = causal_attention(q, k, v)
        branch = self.projection(mixed.transpose(1, 2).reshape(batch, length, width))
        h, y = _normed(h, self.mlp_norm, branch)
        return h + self.contract(F.gelu(self.expand(y), approximate="tanh"))


class CausalTransformer(nn.Module):
    """Features ``f_i`` that depend on the class and on ``e_1..e_{i-1}`` only.

    The input is ``[class embedding, Linear(e_1), ..., Linear(e_{n-1})]`` plus learned positions;
    class ``num_classes`` is the null class.
    """

    adapted = True  # reads any vector
    apart: Sequence[tuple[nn.Module, str]] = ()

    def __init__(
        self,
        *,
        num_tokens: int,
        dimension: int,
        num_classes: int,
        width: int,
        layers: int,
        heads: int,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width: expected a multiple of heads = {heads}, got {width}")
        self.backbone_config: dict[str, Any] = dict(
            num_tokens=num_tokens,
            dimension=dimension,
            num_classes=num_classes,
            width=width,
            layers=layers,
            heads=heads,
        )
        self.num_tokens, self.num_classes, self.dimension = num_tokens, num_classes, dimension
        self.condition = ClassCondition(num_classes)
        self.width, self.heads = width, heads
        self.class_embedding = nn.Embedding(num_classes + 1, width)
        self.input = Linear(dimension, width)
        self.positions = nn.Parameter(torch.empty(num_tokens, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.class_embedding.weight, std=0.3)
        nn.init.normal_(self.positions, std=0.1)

    def network_config(self, exact: bool) -> dict[str, Any]:
        """The arguments of a DD2 network's backbone that starts from this one."""
        return dict(self.backbone_config)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Features ``[B, n, D]`` of ``embeddings [B, n, C]`` (the last token is not read)."""
        start = self.class_embedding(labels)[:, None]
        read = embeddings[:, :-1].to(start.dtype)
        h = torch.cat([start, self.input(read)], dim=1) + self.positions
        for block in self.blocks:
            h = block(h)
        return self.norm(h)

    def new_cache(self, batch: int) -> list[KVCache]:
        """An empty cache for :meth:`advance`, one entry per block."""
        size = self.positions.shape[1] // self.heads
        return [
            KVCache(batch, self.heads, self.num_tokens, size, self.positions) for _ in self.blocks
        ]

    def advance(self, known: Tensor, labels: Tensor, cache: list[KVCache]) -> Tensor:
        """Features ``[B, D]`` of the next token.

        Args:
            known: embeddings ``[B, m, C]`` of the tokens since the last call.
        """
        h, start = self.input(known.to(self.positions.dtype)), cache[0].filled
        if start == 0:
            h = torch.cat([self.class_embedding(labels)[:, None], h], dim=1)
        h = h + self.positions[start : start + h.shape[1]]
        for block, entry in zip(self.blocks, cache, strict=True):
            h = block(h, entry)
        return self.norm(h[:, -1])
