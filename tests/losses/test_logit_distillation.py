"""The logit student's loss against the divergence as it is defined, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dd2_fast.losses import TeacherDistribution, logit_distillation_loss

BATCH, TOKENS, VOCABULARY = 2, 3, 9


def rand(*shape: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=rng, dtype=torch.float64)


def kept(row: list[float], top_k: int, top_p: float) -> list[float]:
    """Probabilities of a row of logits under both filters, by sorting."""
    order = sorted(range(len(row)), key=lambda j: -row[j])[: top_k or len(row)]
    total = sum(math.exp(row[j]) for j in order)
    probabilities, above = [0.0] * len(row), 0.0
    for j in order:
        if above < top_p:
            probabilities[j] = math.exp(row[j])
        above += math.exp(row[j]) / total
    return [p / sum(probabilities) for p in probabilities]


FILTERS = {"none": (0, 1.0), "top-k": (4, 1.0), "top-p": (0, 0.7), "both": (6, 0.8)}


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("top_k", "top_p"), FILTERS.values(), ids=FILTERS)
def test_value_and_gradient(top_k: int, top_p: float, guided: bool) -> None:
    shape = BATCH, TOKENS, VOCABULARY
    student = rand(*shape, seed=1).requires_grad_()
    cond, uncond = rand(*shape, seed=2).requires_grad_(), rand(*shape, seed=3)
    scale = torch.tensor([1.0, 1.5, 3.0], dtype=torch.float64)  # one a token, as VAR's
    teacher = TeacherDistribution(
        rand(VOCABULARY, 2, seed=4), cond, uncond if guided else None, scale, top_k, top_p
    )
    loss = logit_distillation_loss(student, teacher)
    assert loss.shape == (BATCH, TOKENS)
    weight = rand(BATCH, TOKENS, seed=5)
    (weight * loss).sum().backward()
    assert cond.grad is None and student.grad is not None
    for b in range(BATCH):
        for i in range(TOKENS):
            row = cond[b, i].detach()
            if guided:
                row = uncond[b, i] + scale[i] * (row - uncond[b, i])
            p = kept(row.tolist(), top_k, top_p)
            q = student[b, i].detach().softmax(0).tolist()
            value = sum(a * math.log(a / c) for a, c in zip(p, q, strict=True) if a)
            assert loss[b, i].item() == pytest.approx(value, abs=1e-12)
            gradient = [float(weight[b, i]) * (c - a) for a, c in zip(p, q, strict=True)]
            assert student.grad[b, i].tolist() == pytest.approx(gradient, abs=1e-12)


def test_zero_where_both_agree() -> None:
    cond, uncond = rand(4, VOCABULARY, seed=1), rand(4, VOCABULARY, seed=2)
    teacher = TeacherDistribution(rand(VOCABULARY, 2, seed=3), cond, uncond, 2.5)
    same = uncond + 2.5 * (cond - uncond) + 7
    assert logit_distillation_loss(same, teacher).abs().max() < 1e-12
    assert logit_distillation_loss(cond, teacher).min() > 0


def test_half_precision_is_summed_in_float32() -> None:
    student = rand(4, VOCABULARY, seed=1).bfloat16().requires_grad_()
    cond = rand(4, VOCABULARY, seed=2).bfloat16()
    teacher = TeacherDistribution(rand(VOCABULARY, 2, seed=3), cond)
    wide = TeacherDistribution(teacher.codebook, cond.double())
    loss = logit_distillation_loss(student, teacher)
    assert loss.dtype == torch.float32
    expected = logit_distillation_loss(student.double(), wide)
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    loss.sum().backward()
    assert student.grad is not None and student.grad.dtype == torch.bfloat16
    wanted = student.detach().double().softmax(-1) - cond.double().softmax(-1)
    torch.testing.assert_close(student.grad.double(), wanted, atol=2e-3, rtol=1e-2)


def test_another_shape_is_refused() -> None:
    teacher = TeacherDistribution(rand(VOCABULARY, 2, seed=3), rand(4, VOCABULARY, seed=2))
    with pytest.raises(ValueError, match=r"logits: expected shape \[4, 9\].*got \[4, 8\]"):
        logit_distillation_loss(rand(4, VOCABULARY - 1, seed=1), teacher)
