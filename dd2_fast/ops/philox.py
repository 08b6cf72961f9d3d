"""Philox4x32-10, a counter-based random generator: a number is a function of (key, counter)."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .image_normal import image_normal

__all__ = ["image_normal", "image_uniform", "philox", "row_uniform"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Array = TypeVar("Array", np.ndarray, Tensor)


def philox(
    c0: Array, c1: Array, c2: Array, c3: Array, key: tuple[int, int] | tuple[Array, Array]
) -> tuple[Array, ...]:
    """Return the four Philox4x32-10 words of a counter of four words under a key of two.

    Words are 32-bit values in int64 arrays that broadcast, NumPy's or torch's; products wrap,
    which keeps their low 64 bits exact. Source: Salmon et al., Parallel random numbers: as easy
    as 1, 2, 3 (SC 2011).
    """
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, ((p0 >> 32) & _MASK) ^ c3 ^ k1
        c1, c3 = p1 & _MASK, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def row_uniform(seed: Tensor, row: Tensor, stream: int) -> Tensor:
    """float64 uniforms ``[*]`` in (0, 1), a function of (seed, row, stream) each.

    ``seed`` is int64 ``[]`` or ``[*]``, ``row`` int64 ``[*]``. The values are multiples of 2^-52,
    offset by half of one. The counter is (0, row low, row high, stream), the key (seed low, seed
    high).
    """
    zero = torch.zeros_like(row)
    key = (seed & _MASK, (seed >> 32) & _MASK)
    high, low, *_ = philox(zero, row & _MASK, (row >> 32) & _MASK, zero + stream, key)
    return (((high << 20) | (low >> 12)).double() + 0.5) * 2.0**-52


def image_uniform(seed: int | Tensor, indices: Tensor, count: int, *, stream: int) -> Tensor:
    """Return float64 uniforms [B, count] in (0, 1), a function of (seed, index, stream, position).

    indices [B] is int64, and so is a seed [B] given as a tensor, which a compiled or captured
    function can read. The values are multiples of 2^-32, offset by half of one. The counter is
    (position / 4, index low, index high, stream), the key (seed low, seed high).
    """
    blocks = -(-count // 4)
    seeds = seed[:, None] if isinstance(seed, Tensor) else seed
    key: Any = (seeds & _MASK, (seeds >> 32) & _MASK)
    low, high = (indices & _MASK)[:, None], ((indices >> 32) & _MASK)[:, None]
    block = torch.arange(blocks, device=indices.device)[None]
    words = torch.stack(philox(block, low, high, torch.full_like(low, stream), key), -1)
    return (words.flatten(1)[:, :count].double() + 0.5) * 2.0**-32
