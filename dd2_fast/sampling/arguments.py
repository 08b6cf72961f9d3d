"""Checks of the sampler's arguments."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_indices(indices: Sequence[int] | Tensor | None, start: int, count: int) -> Tensor:
    """Return the image indices int64 [count]."""
    if start < 0:
        raise ValueError(f"start_index: expected at least 0, got {start}")
    if indices is None:
        return torch.arange(start, start + count)
    if start:
        raise ValueError("indices: expected either indices or start_index, got both")
    if isinstance(indices, Tensor) and indices.dtype != torch.int64:
        raise TypeError(f"indices: expected an int64 tensor, got {indices.dtype}")
    index = (
        indices
        if isinstance(indices, Tensor)
        else torch.tensor([integer(v, "indices") for v in indices], dtype=torch.int64)
    )
    if tuple(index.shape) != (count,):
        raise ValueError(f"indices: expected {count}, one a label, got {list(index.shape)}")
    if count and int(index.min()) < 0:
        raise ValueError(f"indices: expected at least 0, got {int(index.min())}")
    return index


def integer(value: Any, name: str) -> int:
    """Return an integer argument as int; TypeError for bool, float and everything else."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name}: expected an integer, got {value!r} of type {type(value).__name__}"
        ) from None


def full_seed(seed: int, like: Tensor) -> Tensor:
    """Return the low 64 bits of seed, once an image, int64 of the shape and device of like."""
    return torch.full_like(like, (seed + (1 << 63)) % (1 << 64) - (1 << 63))
