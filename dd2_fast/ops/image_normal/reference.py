"""The noise in plain torch: the specification of every other backend.

Two 32-bit uniforms make two normals, ``sqrt(-2 log u) (cos 2 pi u', sin 2 pi u')`` in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..philox import image_uniform


def image_normal(
    seeds: Tensor | None, seed: int, indices: Tensor, shape: Sequence[int], stream: int
) -> Tensor:
    """float32 ``[B, *shape]`` of ``indices [B]`` under ``seeds [B]``, or ``seed`` where None."""
    count = math.prod(shape)
    u = image_uniform(seed if seeds is None else seeds, indices, count + count % 2, stream=stream)
    radius, angle = (-2.0 * u[:, 0::2].log()).sqrt(), 2.0 * torch.pi * u[:, 1::2]
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten(1)
    return pairs[:, :count].reshape(indices.shape[0], *shape).float()
