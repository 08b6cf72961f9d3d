"""Means and covariances in parts against NumPy's of all at once."""

from __future__ import annotations

import numpy as np
import torch

from dd2_fast.metrics.moments import Moments


def test_parts_of_any_size_add_up() -> None:
    """Far from zero, where sums of squares would have lost the covariance."""
    x = np.random.default_rng(0).normal(size=(503, 6)) @ np.diag([1, 2, 3, 4, 5, 1e-3]) + 1e7
    moments = Moments()
    for part in np.split(x, [1, 2, 100, 400]):
        moments.add(torch.from_numpy(part))
    assert moments.count == 503
    np.testing.assert_allclose(moments.mean.numpy(), x.mean(0), rtol=1e-14)
    expected = np.cov(x.astype(np.longdouble), rowvar=False)
    np.testing.assert_allclose(moments.covariance.numpy(), expected, rtol=1e-5, atol=1e-9)


def test_narrow_features_are_added_in_float64() -> None:
    x = torch.full((3, 1), 0.1, dtype=torch.bfloat16)
    moments = Moments()
    moments.add(x)
    assert moments.mean.dtype == torch.float64 and moments.mean.item() == x[0].double().item()
    assert moments.covariance.item() == 0
