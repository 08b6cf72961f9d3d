"""Kernel Inception distance: the squared maximum mean discrepancy of a cubic kernel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .checks import check_features


def kernel_distance(
    features_a: Tensor,
    features_b: Tensor,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """Return mean and standard deviation over random subsets of the unbiased estimate of
    ``E k(a, a') + E k(b, b') - 2 E k(a, b)``, ``k(x, y) = (x . y / D + 1)^3``, in float64.

    features_a are [N, D], features_b [M, D]. The subsets are torch-fidelity's under the seed. It
    may be slightly negative. Raises ValueError for other shapes, fewer rows than a subset has, or
    a value that is not finite.

    Source: Binkowski et al., Demystifying MMD GANs (arXiv 1801.01401).
    """
    for name, value, least in (("subsets", subsets, 1), ("subset_size", subset_size, 2)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    wanted = f"at least subset_size = {subset_size}"
    check_features(subset_size, wanted, features_a=features_a, features_b=features_b)
    rng, found = np.random.RandomState(seed), []
    for _ in range(subsets):
        parts = []
        for features in (features_a, features_b):
            rows = torch.from_numpy(rng.choice(len(features), subset_size, replace=False))
            parts.append(features[rows.to(features.device)].detach().double())
        a, b = parts
        same = (_others(_kernel(a, a)) + _others(_kernel(b, b))) / (subset_size - 1)
        found.append(float(same / subset_size - 2 * _kernel(a, b).mean()))
    return float(np.mean(found)), float(np.std(found))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # a power of 3 takes ten times as long


def _others(kernel: Tensor) -> Tensor:
    """The sum off the diagonal."""
    return kernel.sum() - kernel.trace()
