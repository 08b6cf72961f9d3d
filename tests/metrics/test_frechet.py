"""Fréchet distance against scipy's matrix square root and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg

from dd2_fast.metrics import frechet_distance, frechet_distance_per_class


def _features(rows: int, columns: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, columns)) @ rng.standard_normal((columns, columns))
    return torch.tensor(mixed + rng.standard_normal(columns), dtype=torch.float32)


def _by_scipy(a: torch.Tensor, b: torch.Tensor) -> float:
    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(cov_x @ cov_y)
    shift = x.mean(0) - y.mean(0)
    return float(shift @ shift + np.trace(cov_x + cov_y - 2 * root.real))


@pytest.mark.parametrize(("rows_a", "rows_b", "columns"), [(200, 300, 2), (500, 90, 32)])
def test_agrees_with_the_matrix_square_root(rows_a: int, rows_b: int, columns: int) -> None:
    a, b = _features(rows_a, columns, 0), _features(rows_b, columns, 1)
    assert frechet_distance(a, b) == pytest.approx(_by_scipy(a, b), rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-8)


def test_shift_and_scale_have_closed_forms() -> None:
    a = _features(100, 8, 2).double()
    shift = torch.arange(8.0, dtype=torch.float64)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-8)
    assert frechet_distance(a, a + shift) == pytest.approx(float(shift.square().sum()), rel=1e-9)
    centred = a - a.mean(0)
    trace = float(torch.cov(centred.T).trace())
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * trace, rel=1e-9)


def test_fewer_rows_than_columns_is_finite() -> None:
    """Singular covariances: orthogonal supports add their traces."""
    a, b = torch.zeros(5, 8), torch.zeros(5, 8)
    a[:, 0], b[:, 1] = torch.arange(5.0), torch.arange(5.0)
    shift = 2 * 2.0**2
    assert frechet_distance(a, b) == pytest.approx(2 * 2.5 + shift, rel=1e-9)


def test_per_class_is_the_mean_of_the_classes() -> None:
    a, b = _features(120, 3, 3), _features(90, 3, 4)
    labels_a, labels_b = torch.arange(120) % 3, torch.arange(90) % 3
    expected = [_by_scipy(a[labels_a == c], b[labels_b == c]) for c in range(3)]
    result = frechet_distance_per_class(a, labels_a, b, labels_b)
    assert result == pytest.approx(np.mean(expected), rel=1e-8)


def test_bad_inputs_are_named() -> None:
    good = torch.randn(5, 2)
    with pytest.raises(ValueError, match=r"features_b: expected 2 columns.*got 3"):
        frechet_distance(good, torch.randn(5, 3))
    with pytest.raises(ValueError, match=r"features_a: expected shape \[N, D\].*got \[1, 2\]"):
        frechet_distance(good[:1], good)
    with pytest.raises(ValueError, match="features_b: expected finite"):
        frechet_distance(good, torch.full((5, 2), torch.nan))
    with pytest.raises(ValueError, match=r"labels_a: expected shape \[5\], got \[4\]"):
        frechet_distance_per_class(good, torch.zeros(4), good, torch.zeros(5))
