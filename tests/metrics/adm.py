"""ADM's evaluator.py (guided-diffusion, arXiv 2105.05233) from its definitions, in NumPy."""

from __future__ import annotations

import numpy as np
from scipy import linalg

Array = np.ndarray


def statistics(activations: Array) -> tuple[Array, Array]:
    return np.mean(activations, axis=0), np.cov(activations, rowvar=False)


def frechet(mu1: Array, sigma1: Array, mu2: Array, sigma2: Array) -> float:
    root = linalg.sqrtm(sigma1.dot(sigma2))
    diff = mu1 - mu2
    return float(diff.dot(diff) + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(root.real))


def inception_score(logits: Array, split_size: int = 5000) -> float:
    exponent = np.exp(logits - logits.max(1, keepdims=True))
    softmax, scores = exponent / exponent.sum(1, keepdims=True), []
    for i in range(0, len(softmax), split_size):
        part = softmax[i : i + split_size]
        kl = part * (np.log(part) - np.log(np.mean(part, 0)[None]))
        scores.append(np.exp(np.mean(np.sum(kl, 1))))
    return float(np.mean(scores))


def precision_recall(reference: Array, sample: Array, k: int = 3) -> tuple[float, float]:
    """Squared distances, and radii by partition; the status of each set in the other's manifold."""

    def distances(u: Array, v: Array) -> Array:
        squares = np.sum(u**2, 1)[:, None] - 2 * u @ v.T + np.sum(v**2, 1)[None]
        return np.maximum(squares, 0)

    def radii(x: Array) -> Array:
        return np.partition(distances(x, x), k, axis=1)[:, k]

    between = distances(reference, sample)
    precision = (between <= radii(reference)[:, None]).any(0)
    recall = (between <= radii(sample)[None]).any(1)
    return float(precision.mean()), float(recall.mean())


def kernel_distance(a: Array, b: Array) -> float:
    """The unbiased estimate of all rows, pair by pair."""
    kernel = lambda x, y: (x @ y / len(x) + 1) ** 3  # noqa: E731
    m, n = len(a), len(b)
    xx = sum(kernel(a[i], a[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(kernel(b[i], b[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return xx + yy - 2 * sum(kernel(x, y) for x in a for y in b) / (m * n)
