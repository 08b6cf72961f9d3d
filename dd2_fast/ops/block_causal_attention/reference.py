"""Block-causal attention in plain torch: the specification of every other backend."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

SHORTEST = 1e-12  # of a vector that is divided by its length: a zero vector stays one


def block_causal_attention(
    qkv: Tensor,
    ends: Sequence[int],
    gain: Tensor | None,
    rotary: Tensor | None,
    strict: bool,
    scale: float,
) -> Tensor:
    """``[B, n, H d]`` in the dtype of ``qkv [B, n, 3, H, d]``; no ``ends``: one token a block."""
    wide = torch.promote_types(qkv.dtype, torch.float32)
    q, k, v = qkv.to(wide).permute(2, 0, 3, 1, 4)
    if rotary is not None:
        q, k = _turned(q, rotary.to(wide)), _turned(k, rotary.to(wide))
    if gain is not None:
        q = F.normalize(q, dim=-1, eps=SHORTEST) * gain.to(wide)[:, None, None]
        k = F.normalize(k, dim=-1, eps=SHORTEST)
    mask = _allowed(ends, qkv.shape[1], strict, qkv.device)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return mixed.transpose(1, 2).flatten(2).to(qkv.dtype)


def _turned(x: Tensor, table: Tensor) -> Tensor:
    """``x [B, H, n, d]`` with neighbouring channels as complex numbers, times the table's."""
    (a, b), (cos, sin) = x.unflatten(-1, (-1, 2)).unbind(-1), table.unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


def _allowed(ends: Sequence[int], count: int, strict: bool, device: torch.device) -> Tensor:
    """``[n, n]``, True where a query, by row, sees a key."""
    if not ends:
        return torch.ones(count, count, dtype=torch.bool, device=device).tril()
    mask = torch.eye(count, dtype=torch.bool, device=device)
    for start, end in pairwise((0, *ends)):
        mask[start:end, : start if strict else end] = True
    return mask
