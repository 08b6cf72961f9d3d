"""Checks that metrics of two sets of feature vectors share."""

from __future__ import annotations

import torch
from torch import Tensor


def check_features(least: int, wanted: str, **sets: Tensor) -> None:
    """ValueError unless each of two sets is [N, D] with N at least `least`, which the error calls
    `wanted`, finite, and D is the same."""
    for name, features in sets.items():
        if features.ndim != 2 or features.shape[0] < least:
            raise ValueError(
                f"{name}: expected shape [N, D] with N {wanted}, got {list(features.shape)}"
            )
        if not bool(torch.isfinite(features).all()):
            raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    (first, a), (second, b) = sets.items()
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{second}: expected {a.shape[1]} columns as in {first}, got {b.shape[1]}")
