"""The logit student over every family's small random network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dd2_fast.checkpoints import load, save
from dd2_fast.losses import TeacherScore, flow_pairs
from dd2_fast.models import LogitStudent, prepare
from dd2_fast.models.families import FAMILIES
from dd2_fast.ops import flow_solve

LABELS = torch.tensor([3, 7])


@pytest.fixture(params=FAMILIES)
def teacher(request: pytest.FixtureRequest) -> Any:
    """One that reads any vector, in float64, and nothing of it zero."""
    torch.manual_seed(0)
    family = FAMILIES[request.param]
    teacher = family.random().eval().requires_grad_(False)
    for name, parameter in teacher.named_parameters():
        if "ada_lin" in name:
            nn.init.normal_(parameter, std=0.1)
    teacher.double().tokenizer.double()
    return family.adapt(teacher, 0).eval().requires_grad_(False)


@pytest.fixture
def student(teacher: Any) -> LogitStudent:
    return LogitStudent.from_teacher(teacher, flow_steps=6).double().eval().requires_grad_(False)


def noise_of(student: LogitStudent, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, student.num_tokens, student.dimension, generator=rng).double()


def test_it_starts_as_the_teacher(teacher: Any, student: LogitStudent) -> None:
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randint(len(teacher.codebook), (2, teacher.num_tokens), generator=rng)
    codes = teacher.codebook[tokens].double()
    expected = teacher.logits(codes, LABELS)
    torch.testing.assert_close(student(codes, LABELS, True), expected, atol=1e-12, rtol=1e-12)


def test_its_codes_are_the_flow_of_its_logits(student: LogitStudent) -> None:
    noise = noise_of(student)
    logits = student(noise, LABELS, True)
    tokens = flow_solve(noise, logits, student.codebook, steps=6)
    assert torch.equal(student(noise, LABELS), student.codebook[tokens])
    assert torch.equal(student.tokens(noise, logits), tokens) and tokens.unique().numel() > 4


def test_a_temperature_is_of_the_codes_alone(student: LogitStudent, tmp_path: Path) -> None:
    noise = noise_of(student)
    logits = student(noise, LABELS, True)
    prepare(student)
    cold = student.at_temperature(0.5)
    tokens = flow_solve(noise, 2 * logits, student.codebook, steps=6)
    assert not torch.equal(tokens, student.tokens(noise, logits))
    assert torch.equal(cold(noise, LABELS), student.codebook[tokens])
    assert torch.equal(cold(noise, LABELS, True), logits) and student.temperature == 1
    assert torch.equal(prepare(cold)(noise, LABELS), cold(noise, LABELS))
    save(tmp_path / "cold.safetensors", cold)
    assert load(tmp_path / "cold.safetensors").temperature == 0.5
    for bad in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"temperature: expected a positive, .* got {bad}"):
            student.at_temperature(bad)


def test_a_teacher_that_reads_nothing_is_matched(teacher: Any) -> None:
    """Where logits do not depend on earlier tokens, one pass gives DD1's map of the noise."""
    head = getattr(teacher, FAMILIES[_family(teacher)].classifier)
    nn.init.zeros_(head.weight)
    head.bias = nn.Parameter(torch.linspace(-2, 2, len(teacher.codebook)).double())
    student = LogitStudent.from_teacher(teacher, flow_steps=6).double().requires_grad_(False)
    noise = noise_of(student)
    tokens = flow_pairs(noise, LABELS, TeacherScore(teacher), 6)
    assert torch.equal(student(noise, LABELS), student.codebook[tokens])


def _family(teacher: Any) -> str:
    return next(n for n, one in FAMILIES.items() if isinstance(teacher, tuple(one.kinds.values())))


def test_logits_read_noise_of_earlier_steps_alone(teacher: Any, student: LogitStudent) -> None:
    noise = noise_of(student)
    logits = student(noise, LABELS, True)
    for own in teacher.steps:
        changed = noise.clone()
        changed[:, own.start :] += 1
        difference = (student(changed, LABELS, True) - logits).abs().amax((0, 2))
        assert difference[: own.stop].max() == 0
        if own.stop < student.num_tokens:
            assert difference[own.stop :].min() > 0


def test_values_that_are_not_finite_are_not_codes(student: LogitStudent) -> None:
    noise = noise_of(student)
    noise[1, 0] = torch.nan
    codes = student(noise, LABELS)
    assert codes[0].isfinite().all() and codes[1, 0].isnan().all()


def test_files_keep_it(student: LogitStudent, tmp_path: Path) -> None:
    student = student.float()
    student.tokenizer.float()
    save(tmp_path / "student.safetensors", student, tokenizer=student.tokenizer)
    again = load(tmp_path / "student.safetensors")
    assert type(again) is LogitStudent and again.config == student.config
    assert again.flow_steps == 6
    noise = noise_of(student).float()
    assert torch.equal(again(noise, LABELS, True), student(noise, LABELS, True))
    assert torch.equal(again(noise, LABELS), student(noise, LABELS))


def test_prepared_it_computes_the_same(student: LogitStudent) -> None:
    made = prepare(student)
    assert (made is student) == (student.config["family"] == "causal")
    noise = noise_of(student)
    torch.testing.assert_close(
        made(noise, LABELS, True), student(noise, LABELS, True), atol=1e-9, rtol=1e-9
    )
    assert torch.equal(made(noise, LABELS), student(noise, LABELS))


def test_what_does_not_fit_is_refused(teacher: Any, student: LogitStudent) -> None:
    with pytest.raises(ValueError, match=re.escape("noise: expected shape ['B'")):
        student(noise_of(student)[:, 1:], LABELS)
    alone = LogitStudent(**student.config).double()
    with pytest.raises(RuntimeError, match="tokenizer: .* needs"):
        alone(noise_of(student), LABELS)
    other = LogitStudent(**{**student.config, "codes": 5})
    with pytest.raises(ValueError, match="tokenizer: expected 5 codes, got 64"):
        other.tokenizer = teacher.tokenizer
