"""Which tokens see which: whole scales, a cache of them, or, for DD1, lower scales and itself.

Attention runs scale by scale over the tokens it may see, so no mask is needed: at VAR-d16's shape
on a CPU that takes 0.7 of the time of one call with a dense mask and 0.9 of FlexAttention's
(bench/bench_attention.py; not measured on a GPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..cache import KVCache
from ..kernels import attention


class Attend(Protocol):
    """Mixes ``v`` by ``softmax(scale q k)``; all are ``[B, heads, tokens, size]``."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor: ...


class LowerScales:
    """Tokens see their own and lower scales: VAR's teacher forcing."""

    def __init__(self, slices: Sequence[slice]) -> None:
        self.slices = slices

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        mixed = [
            attention(q[:, :, own], k[:, :, : own.stop], v[:, :, : own.stop], scale=scale)
            for own in self.slices
        ]
        return torch.cat(mixed, dim=2)


class ScaleCache(KVCache):
    """The same one scale at a time."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return attention(q, *self.append(k, v), scale=scale)


class StrictlyLowerScales:
    """Tokens see strictly lower scales and themselves: DD1's students.

    A scale of more than one token has a mask ``[m, end]``: everything below, and the diagonal.
    """

    def __init__(self, slices: Sequence[slice], device: torch.device) -> None:
        self.slices = slices
        self.masks: list[Tensor | None] = []
        for own in slices:
            size = own.stop - own.start
            mask = torch.ones(size, own.stop, dtype=torch.bool, device=device)
            mask[:, own] = torch.eye(size, dtype=torch.bool, device=device)
            self.masks.append(mask if size > 1 else None)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        mixed = [
            attention(
                q[:, :, own], k[:, :, : own.stop], v[:, :, : own.stop], mask=mask, scale=scale
            )
            for own, mask in zip(self.slices, self.masks, strict=True)
        ]
        return torch.cat(mixed, dim=2)
