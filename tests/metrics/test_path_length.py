"""Perceptual path length against closed forms of a linear generator."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dd2_fast.metrics import perceptual_path_length


class _Linear:
    """Images that are the noise times a factor, as one channel three times."""

    num_tokens = 16

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.tokenizer = SimpleNamespace(
            codebook=torch.zeros(4, 8),
            decode=lambda x: x.reshape(-1, 1, 8, 16).expand(-1, 3, -1, -1),
        )

    def __call__(self, noise: Tensor, labels: Tensor) -> Tensor:
        return self.factor * noise


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, 0] - b[:, 0]).double().square().sum((-1, -2))


def test_linear_generator_has_the_length_of_the_noise_path() -> None:
    """|dz/ds|^2 along a slerp whose length goes linearly from |a| to |b| (in polar form)."""
    labels = torch.zeros(6, dtype=torch.int64)
    rng = torch.Generator().manual_seed(3)
    share = torch.rand(6, generator=rng)
    expected = []
    for i in range(6):
        a, b = torch.randn(2, 16, 8, generator=rng)
        angle = math.acos(float((a * b).sum() / (a.norm() * b.norm())))
        radius = float(torch.lerp(a.norm(), b.norm(), share[i]))
        expected.append((angle * radius) ** 2 + float(b.norm() - a.norm()) ** 2)
    length = perceptual_path_length(_Linear(1.0), labels, _squared, seed=3, epsilon=1e-2)
    assert length == pytest.approx(sum(expected) / 6, rel=1e-2)
    double = perceptual_path_length(_Linear(2.0), labels, _squared, seed=3, epsilon=1e-2)
    assert double == pytest.approx(4 * length, rel=1e-5)


def test_does_not_depend_on_the_batch_size() -> None:
    labels = torch.arange(7)
    lengths = [
        perceptual_path_length(_Linear(1.0), labels, _squared, batch_size=size) for size in (1, 7)
    ]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-6)


def test_bad_inputs_are_named() -> None:
    with pytest.raises(ValueError, match="epsilon: expected above 0, got 0"):
        perceptual_path_length(_Linear(1.0), torch.arange(2), _squared, epsilon=0)
    with pytest.raises(ValueError, match="labels: expected int64"):
        perceptual_path_length(_Linear(1.0), torch.zeros(2), _squared)
