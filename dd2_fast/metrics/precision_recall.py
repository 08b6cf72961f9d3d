"""Improved precision and recall: how much of each set lies on the manifold of the other."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_features

_CHUNK = 2**24  # distances at a time


def precision_recall(
    real: Tensor, generated: Tensor, *, neighbours: int = 3, exact: bool = True
) -> tuple[float, float]:
    """Return precision and recall of generated [M, D] against real [N, D] feature vectors.

    The manifold of a set is the union of the balls round its points that reach to their k-th
    nearest other point. Precision is the share of generated points on the real manifold, recall
    the share of real points on the generated one. No [N, M] matrix is kept. Distances that are not
    exact come from products, as ADM's evaluator has them: fast, and of equal points about 1e-7 of
    their length instead of 0. Raises ValueError for
    other shapes, values that are not finite, or a set of at most `neighbours` rows.

    Source: Kynkäänniemi et al., Improved precision and recall metric for assessing generative
    models (arXiv 1904.06991), with k = 3 as there.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours: expected at least 1, got {neighbours}")
    wanted = f"above neighbours = {neighbours}"
    check_features(neighbours + 1, wanted, real=real, generated=generated)
    real, generated = real.detach().double(), generated.detach().to(real.device).double()
    distances = _Distances("donot_use" if exact else "use")
    return (
        distances.share_inside(generated, real, distances.radii(real, neighbours)),
        distances.share_inside(real, generated, distances.radii(generated, neighbours)),
    )


class _Distances:
    """Of points in float64, some rows at a time; ``how``: whether torch's are from products."""

    def __init__(self, how: str) -> None:
        self.mode = f"{how}_mm_for_euclid_dist"

    def radii(self, points: Tensor, neighbours: int) -> Tensor:
        """Distance [N] of each point to its k-th nearest other point (itself is the nearest)."""
        return torch.cat(
            [
                self._of(part, points).kthvalue(neighbours + 1, dim=-1).values
                for part in _split(points, len(points))
            ]
        )

    def share_inside(self, points: Tensor, centres: Tensor, radii: Tensor) -> float:
        """Share of points within the radius of any centre."""
        inside = sum(
            int((self._of(part, centres) <= radii).any(-1).sum())
            for part in _split(points, len(centres))
        )
        return inside / len(points)

    def _of(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(a, b, compute_mode=self.mode)


def _split(points: Tensor, others: int) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = points.split(max(1, _CHUNK // others))
    return parts
