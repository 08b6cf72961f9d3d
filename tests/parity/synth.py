"""Weights of the parity fixtures: every tensor is a function of its name, its shape and a seed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def synth_tensor(name: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """The float32 array that the fixtures hold under ``name``.

    Attention temperatures (``scale_mul``) are N(log 4, 0.1^2). Vectors are N(1, 0.1^2) if they are
    a ``weight``, else N(0, 0.1^2), as is whatever has a leading dimension of 1. Tables (``emb`` in
    the name) are N(0, 0.5^2), the codebook N(0, 1). The rest is N(0, 1 / fan_in).
    """
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    normal = rng.standard_normal(tuple(shape), dtype=np.float32)
    if "scale_mul" in name:
        value = math.log(4.0) + 0.1 * normal
    elif len(shape) <= 1:
        value = 1.0 + 0.1 * normal if name.endswith("weight") else 0.1 * normal
    elif shape[0] == 1:
        value = 0.1 * normal
    elif "emb" in name:
        value = normal if name.endswith("quantize.embedding.weight") else 0.5 * normal
    else:
        value = normal / math.sqrt(math.prod(shape[1:]))
    return value.astype(np.float32)


def synth_state_dict(manifest: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, np.ndarray]:
    """Every parameter of a manifest ``{name: shape}`` as float32 arrays."""
    return {name: synth_tensor(name, shape, seed) for name, shape in manifest.items()}


def synth_tensors(manifest: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Tensor]:
    """Every parameter of a manifest ``{name: shape}`` as float32 tensors."""
    return {k: torch.from_numpy(v) for k, v in synth_state_dict(manifest, seed).items()}
