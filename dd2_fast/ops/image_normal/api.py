"""``image_normal``: validation and the seed's 64 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks
from . import schema as schema

_image_normal = torch.ops.dd2_fast.image_normal.default


def image_normal(
    seed: int | Tensor, indices: Tensor, shape: tuple[int, ...], *, stream: int
) -> Tensor:
    """Return float32 standard normals [B, *shape] by Box-Muller, a function of (seed, index,
    stream, position).

    indices [B] is int64; seed is one number, of which the low 64 bits count, or int64 [B]. Backends
    and devices agree up to the rounding of logarithm and cosine in float64.
    """
    checks.check_tensor("indices", indices, (torch.int64,))
    if indices.ndim != 1:
        raise ValueError(f"indices: expected shape [B], got {list(indices.shape)}")
    if isinstance(seed, Tensor):
        checks.check_tensor("seed", seed, (torch.int64,))
        checks.check_shape("seed", seed, indices.shape, "[B], that of indices")
        checks.check_same_device("indices", indices, seed=seed)
        return _image_normal(seed, 0, indices, shape, stream, "")
    if not -(2**63) <= seed < 2**63:
        seed = (seed + 2**63) % 2**64 - 2**63
    return _image_normal(None, seed, indices, shape, stream, "")
