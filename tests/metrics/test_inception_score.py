"""Inception score against its closed forms and a plain sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from metrics import adm

from dd2_fast.metrics import inception_score


def test_confident_and_varied_gives_the_number_of_classes() -> None:
    assert inception_score(torch.eye(5).repeat(20, 1), splits=4) == pytest.approx((5.0, 0.0))


def test_one_prediction_for_all_gives_one() -> None:
    row = torch.tensor([[0.2, 0.5, 0.3]])
    assert inception_score(row.expand(30, 3), splits=3) == pytest.approx((1.0, 0.0))


def test_agrees_with_the_sum_over_each_split() -> None:
    p = torch.randn(23, 4, generator=torch.Generator().manual_seed(0)).softmax(-1).double()
    scores = []
    for part in (p[:11], p[11:22]):
        marginal = [sum(float(row[k]) for row in part) / 11 for k in range(4)]
        total = sum(
            float(r[k]) * math.log(float(r[k]) / marginal[k]) for r in part for k in range(4)
        )
        scores.append(math.exp(total / 11))
    mean = sum(scores) / 2
    deviation = math.sqrt(sum((s - mean) ** 2 for s in scores) / 2)
    assert inception_score(p, splits=2) == pytest.approx((mean, deviation), rel=1e-9)


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        (torch.ones(5), "expected shape"),
        (torch.full((5, 2), 0.5), "at least splits = 10"),
        (torch.ones(20, 2), "sum to one"),
        (torch.tensor([[1.5, -0.5]]).expand(20, 2), "non-negative"),
    ],
)
def test_bad_inputs_are_named(probabilities: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"probabilities: .*{message}"):
        inception_score(probabilities)


def test_splits_of_a_size_are_adm_s() -> None:
    """The last of what is left; in NumPy from the evaluator's definition."""
    logits = np.random.default_rng(3).normal(size=(23, 7)) * 2
    probabilities = torch.from_numpy(logits).softmax(-1)
    mean, _ = inception_score(probabilities, split_size=10)
    assert mean == pytest.approx(adm.inception_score(logits, 10), rel=1e-12)
    assert mean != pytest.approx(inception_score(probabilities, splits=2)[0], rel=1e-3)
    with pytest.raises(ValueError, match="split_size: expected at least 1, got 0"):
        inception_score(probabilities, split_size=0)
