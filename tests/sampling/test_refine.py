"""Teacher refinement against a teacher whose joint distribution is known."""

from __future__ import annotations

import pytest
import torch

from dd2_fast.metrics import total_variation
from dd2_fast.models import TableTeacher
from dd2_fast.sampling.refine import refine

COUNT = 20000


@pytest.fixture(scope="module")
def teacher() -> TableTeacher:
    rng = torch.Generator().manual_seed(0)
    joint = torch.rand((3, 3, 3), generator=rng) ** 3
    codes = torch.randn(3, 2, generator=rng)
    return TableTeacher(num_tokens=3, vocabulary=3, dimension=2, joint=joint, codebook=codes)


def _refine(teacher, tokens, count: int, **options):
    labels = torch.zeros(len(tokens), dtype=torch.int64)
    index = torch.arange(len(tokens))
    return refine(teacher, tokens, labels, index, steps=count, seed=1, **options)


def test_drawing_every_token_gives_the_teacher(teacher) -> None:
    tokens = _refine(teacher, torch.zeros(COUNT, 3, dtype=torch.int64), 3)
    assert total_variation(tokens, teacher.joint()) < 0.02
    guided = _refine(teacher, torch.zeros(COUNT, 3, dtype=torch.int64), 3, cfg=2.0)
    assert torch.equal(guided, tokens), "both classes of the table agree: guidance is no change"


def test_the_prefix_is_kept_and_conditions_what_follows(teacher) -> None:
    prefix = torch.tensor([[2, 0, 1]]).repeat(COUNT, 1)
    tokens = _refine(teacher, prefix, 1)
    assert torch.equal(tokens[:, :2], prefix[:, :2])
    assert torch.equal(prefix[:, 2], torch.ones(COUNT, dtype=torch.int64)), "input unchanged"
    conditional = teacher.joint()[2, 0] / teacher.joint()[2, 0].sum()
    assert total_variation(tokens[:, 2:], conditional) < 0.02


def test_top_k_one_takes_the_likeliest(teacher) -> None:
    tokens = _refine(teacher, torch.ones(50, 3, dtype=torch.int64), 2, top_k=1)
    first = teacher.joint()[1]
    second = int(first.sum(-1).argmax())
    assert tokens.unique(dim=0).tolist() == [[1, second, int(first[second].argmax())]]
