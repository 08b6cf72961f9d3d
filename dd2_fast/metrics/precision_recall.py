"""Improved precision and recall: how much of each set lies on the manifold of the other."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 2**24  # distances at a time


def precision_recall(
    real: Tensor, generated: Tensor, *, neighbours: int = 3
) -> tuple[float, float]:
    """Return precision and recall of generated [M, D] against real [N, D] feature vectors.

    The manifold of a set is the union of the balls round its points that reach to their k-th
    nearest other point. Precision is the share of generated points on the real manifold, recall
    the share of real points on the generated one. No [N, M] matrix is kept. Raises ValueError for
    other shapes, values that are not finite, or a set of at most `neighbours` rows.

    Source: Kynkäänniemi et al., Improved precision and recall metric for assessing generative
    models (arXiv 1904.06991), with k = 3 as there.
    """
    for name, features in (("real", real), ("generated", generated)):
        if features.ndim != 2 or features.shape[0] <= neighbours or neighbours < 1:
            raise ValueError(
                f"{name}: expected shape [N, D] with N above neighbours = {neighbours} >= 1, "
                f"got {list(features.shape)}"
            )
        if not bool(torch.isfinite(features).all()):
            raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"generated: expected {real.shape[1]} columns as in real, got {generated.shape[1]}"
        )
    real, generated = real.detach().double(), generated.detach().to(real.device).double()
    return (
        _share_inside(generated, real, _radii(real, neighbours)),
        _share_inside(real, generated, _radii(generated, neighbours)),
    )


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """Distance [N] of each point to its k-th nearest other point (itself is the nearest)."""
    return torch.cat(
        [
            _distances(part, points).kthvalue(neighbours + 1, dim=-1).values
            for part in _split(points, len(points))
        ]
    )


def _share_inside(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Share of points within the radius of any centre."""
    inside = sum(
        int((_distances(part, centres) <= radii).any(-1).sum())
        for part in _split(points, len(centres))
    )
    return inside / len(points)


def _split(points: Tensor, others: int) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = points.split(max(1, _CHUNK // others))
    return parts


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
