"""Precision and recall against a brute-force count."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from metrics import adm

from dd2_fast.metrics import precision_recall

module = importlib.import_module("dd2_fast.metrics.precision_recall")


def _share(points: np.ndarray, centres: np.ndarray, k: int) -> float:
    radii = [sorted(np.linalg.norm(centres - c, axis=1))[k] for c in centres]
    inside = [
        any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)) for p in points
    ]
    return sum(inside) / len(inside)


@pytest.mark.parametrize("chunk", [2**24, 100])
def test_agrees_with_a_brute_force_count(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    rng = np.random.default_rng(0)
    real, generated = rng.standard_normal((60, 3)), 0.7 * rng.standard_normal((45, 3)) + 0.6
    for k in (1, 3):
        result = precision_recall(torch.tensor(real), torch.tensor(generated), neighbours=k)
        expected = (_share(generated, real, k), _share(real, generated, k))
        assert result == pytest.approx(expected)
        assert min(expected) > 0 and max(expected) < 1  # the case says something


def test_extremes() -> None:
    cloud = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    assert precision_recall(cloud, cloud) == (1.0, 1.0)
    assert precision_recall(cloud, cloud + 100) == (0.0, 0.0)
    collapsed = cloud[:1] + 1e-3 * torch.randn(20, 4)  # on the manifold, but one point of it
    precision, recall = precision_recall(cloud, collapsed)
    assert precision == 1.0 and recall <= 1 / 50


def test_bad_inputs_are_named() -> None:
    good = torch.randn(10, 2)
    with pytest.raises(ValueError, match="real: expected shape"):
        precision_recall(good[:3], good)
    with pytest.raises(ValueError, match="generated: expected 2 columns"):
        precision_recall(good, torch.randn(10, 3))
    with pytest.raises(ValueError, match="generated: expected finite"):
        precision_recall(good, good / 0)


def test_distances_by_products_are_adm_s() -> None:
    rng = np.random.default_rng(5)
    real, made = rng.normal(size=(200, 16)), 0.8 * rng.normal(size=(150, 16))
    found = precision_recall(torch.from_numpy(real), torch.from_numpy(made), exact=False)
    assert found == adm.precision_recall(real, made)
    assert 0 < found[0] < 1 and 0 < found[1] < 1


def test_exact_distances_do_not_depend_on_the_origin() -> None:
    """Whole numbers stay exact 2^40 away, where products would lose all their digits."""
    rng = np.random.default_rng(6)
    real, made = (torch.from_numpy(rng.integers(-9, 9, (60, 8)) * 1.0) for _ in range(2))
    near = precision_recall(real, made)
    assert 0 < near[0] < 1 and precision_recall(real + 2.0**40, made + 2.0**40) == near
