"""Counter-based random numbers: every image has its own, whatever the batch and the device."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ops.philox import MULTIPLIERS, ROUNDS, WEYL, philox

NOISE_STREAM = 0
TOKEN_STREAM = 1

_MASK = 0xFFFFFFFF
_MULTIPLIERS = np.array(MULTIPLIERS, dtype=np.uint64)[:, None, None]
_LOW_WORD, _WORD_BITS = np.uint64(_MASK), np.uint64(32)


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


def image_noise(seed: int | Tensor, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return float32 standard normal noise [B, *shape] by Box-Muller, one draw an image index.

    indices [B] is int64 and says which images of the job with this seed are wanted; seed is one
    number or int64 [B]. Devices agree up to the rounding of logarithm and cosine.
    """
    count = 1
    for size in shape:
        count *= size
    u = image_uniform(seed, indices, count + count % 2, stream=NOISE_STREAM)
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
        np.multiply(multiplied, _MULTIPLIERS, out=products)
        np.right_shift(products[::-1], _WORD_BITS, out=multiplied)
        multiplied ^= other
        multiplied ^= key
        np.bitwise_and(products[::-1], _LOW_WORD, out=other)
    return np.stack((multiplied[0], other[0], multiplied[1], other[1]), -1).view(np.int64)


@functools.lru_cache(maxsize=16)
def _round_keys(low: int, high: int) -> tuple[np.ndarray, ...]:
    """The keys uint64 [2, 1, 1] of Philox's rounds."""
    rounds = np.arange(ROUNDS, dtype=np.uint64)[:, None]
    keys = np.array([low, high], np.uint64) + rounds * np.array(WEYL, np.uint64)
    return tuple((keys & _LOW_WORD)[..., None, None])
