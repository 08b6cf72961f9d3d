"""Fréchet distance between two sets of feature vectors, each seen as one Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor

from .moments import Moments


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Return ``|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2)`` in float64.

    ``m`` are the means and ``S`` the unbiased covariances of features_a [N, D] and features_b
    [M, D]. Raises ValueError for other shapes, fewer than two rows or a value that is not finite.
    """
    mean_a, covariance_a = _moments(features_a, "features_a")
    mean_b, covariance_b = _moments(features_b, "features_b")
    if mean_a.shape != mean_b.shape:
        raise ValueError(
            f"features_b: expected {mean_a.shape[0]} columns as in features_a, "
            f"got {mean_b.shape[0]}"
        )
    return gaussian_distance(mean_a, covariance_a, mean_b, covariance_b)


def gaussian_distance(
    mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor
) -> float:
    """Return the same of means [D] and covariances [D, D] in float64."""
    values, vectors = torch.linalg.eigh(covariance_a)
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root_a @ covariance_b @ root_a
    root_trace = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (
        (mean_a - mean_b).square().sum()
        + covariance_a.trace()
        + covariance_b.trace()
        - 2.0 * root_trace
    )
    return max(float(distance), 0.0)


def frechet_distance_per_class(
    features_a: Tensor, labels_a: Tensor, features_b: Tensor, labels_b: Tensor
) -> float:
    """Return the mean over the classes of labels_b [M] of the distance inside each class.

    labels_a [N] and labels_b [M] go with the rows of features_a [N, D] and features_b [M, D].
    Raises ValueError when a class has fewer than two rows on either side.
    """
    for name, labels, features in (
        ("labels_a", labels_a, features_a),
        ("labels_b", labels_b, features_b),
    ):
        if labels.shape != features.shape[:1]:
            raise ValueError(
                f"{name}: expected shape [{features.shape[0]}], got {list(labels.shape)}"
            )
    classes = labels_b.unique()
    distances = [
        frechet_distance(features_a[labels_a == label], features_b[labels_b == label])
        for label in classes
    ]
    return sum(distances) / len(distances)


def _moments(features: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return the mean [D] and the unbiased covariance [D, D] in float64."""
    if features.ndim != 2 or features.shape[0] < 2:
        raise ValueError(
            f"{name}: expected shape [N, D] with at least two rows, got {list(features.shape)}"
        )
    if not torch.isfinite(features).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    moments = Moments()
    moments.add(features.cpu())
    return moments.mean, moments.covariance
