"""Philox4x32-10, a counter-based random generator: a number is a function of (key, counter)."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MULTIPLIER_PAIR = np.array(_MULTIPLIERS, dtype=np.uint64)[:, None, None]
_LOW_WORD, _WORD_BITS = np.uint64(_MASK), np.uint64(32)

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

    ``seed`` is int64 ``[]``, ``row`` int64 ``[*]``. The values are multiples of 2^-52, offset by
    half of one. The counter is (0, row low, row high, stream), the key (seed low, seed high).
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
    if isinstance(seed, int) and indices.device.type == "cpu":
        words = torch.from_numpy(_words(seed, indices.numpy(), blocks, stream))
    else:
        seeds = seed[:, None] if isinstance(seed, Tensor) else seed
        key: Any = (seeds & _MASK, (seeds >> 32) & _MASK)
        low, high = (indices & _MASK)[:, None], ((indices >> 32) & _MASK)[:, None]
        block = torch.arange(blocks, device=indices.device)[None]
        words = torch.stack(philox(block, low, high, torch.full_like(low, stream), key), -1)
    return (words.flatten(1)[:, :count].double() + 0.5) * 2.0**-32


def image_normal(
    seed: int | Tensor, indices: Tensor, shape: tuple[int, ...], *, stream: int
) -> Tensor:
    """Return float32 standard normals [B, *shape] by Box-Muller, a function of (seed, index,
    stream, position).

    indices [B] is int64; seed is one number or int64 [B]. Devices agree up to the rounding of
    logarithm and cosine.
    """
    count = 1
    for size in shape:
        count *= size
    u = image_uniform(seed, indices, count + count % 2, stream=stream)
    radius, angle = (-2.0 * u[:, 0::2].log()).sqrt(), 2.0 * torch.pi * u[:, 1::2]
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten(1)
    return pairs[:, :count].reshape(indices.shape[0], *shape).float()


def _words(seed: int, indices: np.ndarray, blocks: int, stream: int) -> np.ndarray:
    """The words int64 [B, blocks, 4] of `image_uniform`'s counters.

    For a few hundred numbers the time is NumPy's cost of a call, a third of torch's. The two halves
    of a Philox round are alike, so both go through one call: five a round instead of twelve.
    """
    shape = (2, len(indices), blocks)
    multiplied, other = np.empty(shape, np.uint64), np.empty(shape, np.uint64)
    multiplied[0], multiplied[1] = np.arange(blocks), (indices >> 32)[:, None]
    other[0], other[1] = (indices & _MASK)[:, None], stream
    products = np.empty(shape, np.uint64)
    for key in _round_keys(seed & _MASK, (seed >> 32) & _MASK):
        np.multiply(multiplied, _MULTIPLIER_PAIR, out=products)
        np.right_shift(products[::-1], _WORD_BITS, out=multiplied)
        multiplied ^= other
        multiplied ^= key
        np.bitwise_and(products[::-1], _LOW_WORD, out=other)
    return np.stack((multiplied[0], other[0], multiplied[1], other[1]), -1).view(np.int64)


@functools.lru_cache(maxsize=16)
def _round_keys(low: int, high: int) -> tuple[np.ndarray, ...]:
    """The keys uint64 [2, 1, 1] of Philox's rounds."""
    rounds = np.arange(_ROUNDS, dtype=np.uint64)[:, None]
    keys = np.array([low, high], np.uint64) + rounds * np.array(_WEYL, np.uint64)
    return tuple((keys & _LOW_WORD)[..., None, None])
