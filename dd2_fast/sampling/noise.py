"""Counter-based random numbers: every image has its own, whatever the batch and the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ops.philox import philox

NOISE_STREAM = 0
TOKEN_STREAM = 1

_MASK = 0xFFFFFFFF


def image_uniform(seed: int | Tensor, indices: Tensor, count: int, *, stream: int) -> Tensor:
    """Return float64 uniforms [B, count] in (0, 1), a function of (seed, index, stream, position).

    indices [B] is int64, and so is a seed [B] given as a tensor, which a compiled or captured
    function can read. The values are multiples of 2^-32, offset by half of one. The counter is
    (position / 4, index low, index high, stream), the key (seed low, seed high).
    """
    if isinstance(seed, Tensor):
        seed = seed[:, None]
    key: Any = (seed & _MASK, (seed >> 32) & _MASK)
    blocks = -(-count // 4)
    low, high = (indices & _MASK)[:, None], ((indices >> 32) & _MASK)[:, None]
    if indices.device.type == "cpu" and isinstance(seed, int):
        # A few hundred elements at a time: NumPy's cost of a call is a third of torch's.
        counter = (
            np.arange(blocks, dtype=np.int64)[None],
            low.numpy(),
            high.numpy(),
            np.full((1, 1), stream),
        )
        words = torch.from_numpy(np.stack(philox(*counter, key), -1))
    else:
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
