"""Total variation, likelihood and set prediction on tokens whose distribution is known."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch

from dd2_fast.metrics import negative_log_likelihood, shuffle_within_class, total_variation
from dd2_fast.models import TableTeacher

DIAGONAL = torch.tensor([[0.5, 0.0], [0.0, 0.5]])


def test_total_variation_of_exact_cases() -> None:
    pairs = torch.tensor([[0, 0], [1, 1]]).repeat(50, 1)
    independent = torch.tensor(list(itertools.product((0, 1), repeat=2))).repeat(25, 1)
    assert total_variation(pairs, DIAGONAL) == 0.0
    assert total_variation(independent, DIAGONAL) == 0.5
    assert total_variation(torch.tensor([[0, 1]]), DIAGONAL) == 1.0


def test_total_variation_agrees_with_counting() -> None:
    """Three tokens with unequal vocabularies, so that a wrong stride shows."""
    shape, rng = (2, 3, 4), torch.Generator().manual_seed(0)
    joint = torch.rand(shape, generator=rng, dtype=torch.float64)
    joint /= joint.sum()
    tokens = torch.stack([torch.randint(v, (500,), generator=rng) for v in shape], 1)
    counts = Counter(map(tuple, tokens.tolist()))
    every = itertools.product(*map(range, shape))
    expected = sum(abs(counts[q] / 500 - float(joint[q])) for q in every) / 2
    assert total_variation(tokens, joint) == pytest.approx(expected, abs=1e-12)


def test_total_variation_names_bad_inputs() -> None:
    with pytest.raises(ValueError, match=r"tokens: expected shape \[N, 2\].*got \[3, 3\]"):
        total_variation(torch.zeros(3, 3, dtype=torch.int64), DIAGONAL)
    with pytest.raises(ValueError, match=r"tokens: expected values in 0\.\.1, got 0 to 2"):
        total_variation(torch.tensor([[0, 2]]), DIAGONAL)


def test_likelihood_is_that_of_the_joint_table() -> None:
    rng = torch.Generator().manual_seed(1)
    joint = torch.rand((4, 4, 4), generator=rng) + 0.05
    codes = torch.randn(4, 2, generator=rng)
    teacher = TableTeacher(num_tokens=3, vocabulary=4, dimension=2, joint=joint, codebook=codes)
    tokens = torch.randint(4, (70, 3), generator=rng)
    p = (joint / joint.sum())[tokens[:, 0], tokens[:, 1], tokens[:, 2]]
    expected = -sum(math.log(v) for v in p.tolist()) / tokens.numel()
    labels = torch.zeros(70, dtype=torch.int64)
    result = negative_log_likelihood(teacher, tokens, labels, batch_size=32)
    assert result == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"labels: expected shape \[70\], got \[1\]"):
        negative_log_likelihood(teacher, tokens, labels[:1])


def test_shuffling_keeps_marginals_and_breaks_dependencies() -> None:
    labels = torch.arange(4000) % 2
    bit = torch.arange(4000) // 2 % 2
    tokens = torch.stack([bit, bit, 5 + labels], 1)
    shuffled = shuffle_within_class(tokens, labels, seed=3)
    for label in (0, 1):
        for position in range(3):
            before = tokens[labels == label, position].sort().values
            assert torch.equal(shuffled[labels == label, position].sort().values, before)
    assert total_variation(shuffled[:, :2], DIAGONAL) == pytest.approx(0.5, abs=0.05)
    assert torch.equal(shuffled[:, 2], tokens[:, 2])
