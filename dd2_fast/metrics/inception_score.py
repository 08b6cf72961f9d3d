"""Inception score: confident and varied predictions of a classifier."""

from __future__ import annotations

import torch
from torch import Tensor


def inception_score(
    probabilities: Tensor, *, splits: int = 10, split_size: int | None = None
) -> tuple[float, float]:
    """Return mean and standard deviation over splits of ``exp(mean_i KL(p(y|x_i) | p(y)))``.

    probabilities [N, K] are a classifier's, rows summing to one; ``p(y)`` is the mean row of the
    split. Splits are consecutive and of equal size, rows left over at the end are unused, as in the
    original code: shuffle first if the rows are sorted. With a split_size they have so many rows,
    the last one what is left, as in ADM's evaluator, which takes 5000. Raises ValueError for other
    shapes, rows that are no distributions, or fewer rows than splits.

    Source: Salimans et al., Improved techniques for training GANs (arXiv 1606.03498).
    """
    if split_size is not None and split_size < 1:
        raise ValueError(f"split_size: expected at least 1, got {split_size}")
    least = splits if split_size is None else 1
    if probabilities.ndim != 2 or least < 1 or probabilities.shape[0] < least:
        raise ValueError(
            f"probabilities: expected shape [N, K] with N at least splits = {least} >= 1, "
            f"got {list(probabilities.shape)}"
        )
    p = probabilities.detach().to("cpu", torch.float64)
    if not bool((p >= 0).all()) or not torch.allclose(p.sum(-1), p.new_ones(()), atol=1e-3):
        raise ValueError("probabilities: expected rows that are non-negative and sum to one")
    if split_size is None:
        size = p.shape[0] // splits
        parts = p[: size * splits].split(size)
    else:
        parts = p.split(split_size)
    scores = torch.stack([_score(part) for part in parts])
    return float(scores.mean()), float(scores.std(correction=0))


def _score(p: Tensor) -> Tensor:
    marginal = p.mean(0, keepdim=True)
    return (torch.xlogy(p, p) - torch.xlogy(p, marginal)).sum(-1).mean().exp()
