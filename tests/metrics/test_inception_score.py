"""Inception score against its closed forms and a plain sum."""

from __future__ import annotations

import math

import pytest
import torch

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
