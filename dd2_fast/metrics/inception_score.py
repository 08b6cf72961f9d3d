"""Inception score: confident and varied predictions of a classifier."""

from __future__ import annotations

import torch
from torch import Tensor


def inception_score(probabilities: Tensor, *, splits: int = 10) -> tuple[float, float]:
    """Return mean and standard deviation over splits of ``exp(mean_i KL(p(y|x_i) | p(y)))``.

    probabilities [N, K] are a classifier's, rows summing to one; ``p(y)`` is the mean row of the
    split. Splits are consecutive and of equal size, rows left over at the end are unused, as in the
    original code: shuffle first if the rows are sorted. Raises ValueError for other shapes, rows
    that are no distributions, or fewer rows than splits.

    Source: Salimans et al., Improved techniques for training GANs (arXiv 1606.03498).
    """
    if probabilities.ndim != 2 or splits < 1 or probabilities.shape[0] < splits:
        raise ValueError(
            f"probabilities: expected shape [N, K] with N at least splits = {splits} >= 1, "
            f"got {list(probabilities.shape)}"
        )
    p = probabilities.detach().to("cpu", torch.float64)
    if not bool((p >= 0).all()) or not torch.allclose(p.sum(-1), p.new_ones(()), atol=1e-3):
        raise ValueError("probabilities: expected rows that are non-negative and sum to one")
    size = p.shape[0] // splits
    p = p[: size * splits].reshape(splits, size, -1)
    marginal = p.mean(1, keepdim=True)
    divergence = (torch.xlogy(p, p) - torch.xlogy(p, marginal)).sum(-1).mean(-1)
    scores = divergence.exp()
    return float(scores.mean()), float(scores.std(correction=0))
