"""Jacobi passes: they end at DD1's map of the noise, and depend on no batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dd2_fast.checkpoints import save
from dd2_fast.cli import main
from dd2_fast.losses import TeacherScore, flow_pairs
from dd2_fast.models import DD2Generator, LogitStudent
from dd2_fast.models.families import FAMILIES
from dd2_fast.sampling import Sampler, export
from dd2_fast.sampling.jobs import run_job
from dd2_fast.sampling.noise import image_noise
from dd2_fast.sampling.sinks import PngFolder

LABELS = [3, 1, 4, 1, 5]


@pytest.fixture
def generator(generator: DD2Generator) -> DD2Generator:
    """With a teacher whose tokens depend on the ones before."""
    generator.teacher.classifier.weight.data *= 10
    return generator


@pytest.fixture
def student(generator: DD2Generator) -> LogitStudent:
    student = LogitStudent.from_teacher(generator.teacher)
    student.teacher, student.tokenizer = generator.teacher, generator.tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in student.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return student.eval()


def exact(teacher: Any, labels: list[int], seed: int = 0, start: int = 0, **score: Any) -> Any:
    """Tokens of DD1's map of the sampler's noise, step by step."""
    index = torch.arange(start, start + len(labels))
    noise = image_noise(seed, index, (teacher.num_tokens, teacher.codebook.shape[1]))
    return flow_pairs(noise, torch.tensor(labels), TeacherScore(teacher, **score))


@pytest.mark.parametrize("kind", ["generator", "student"])
def test_every_pass_makes_a_step_exact(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    settings = {"cfg": 2.0, "top_k": 9}
    wanted = exact(model.teacher, LABELS, 5, 2, **settings)
    far = []
    for passes in (1, 4, 16):
        sampler = Sampler(model, jacobi=passes, **settings)
        found = sampler(LABELS, seed=5, start_index=2, output="tokens")
        assert torch.equal(found[:, :passes], wanted[:, :passes])
        far.append(int((found != wanted).sum()))
    assert far[0] > far[1] > far[2] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_any_family(family: str) -> None:
    """A scale of VAR is one step; LlamaGen's teacher as released reads codes alone."""
    torch.manual_seed(0)
    teacher: Any = FAMILIES[family].random().eval().requires_grad_(False)
    for name, parameter in teacher.named_parameters():
        if "ada_lin" in name:
            nn.init.normal_(parameter, std=0.1)
    reads = FAMILIES[family].adapt(teacher, 0)
    for model in (LogitStudent.from_teacher(reads), DD2Generator.from_teacher(reads, exact=True)):
        model.teacher = teacher
        sampler = Sampler(model.eval(), jacobi=len(teacher.steps), cfg=2.0, top_p=0.9)
        found = sampler(LABELS, output="tokens")
        assert torch.equal(found, exact(teacher, LABELS, cfg=2.0, top_p=0.9))
        with pytest.raises(ValueError, match=f"jacobi: expected 0 to {len(teacher.steps)}, the"):
            Sampler(model, jacobi=len(teacher.steps) + 1)


def test_the_first_pass_starts_from_the_generator(student: LogitStudent) -> None:
    index = torch.arange(5)
    noise = image_noise(0, index, (16, 4))
    tokens = Sampler(student)(LABELS, output="tokens")
    score = TeacherScore(student.teacher)
    wanted = score(tokens, torch.tensor(LABELS)).flow(noise, student.flow_steps)
    assert torch.equal(Sampler(student, jacobi=1)(LABELS, output="tokens"), wanted)
    images = Sampler(student, jacobi=1)(LABELS)
    decoded = student.tokenizer.decode(student.tokenizer.embed(wanted))
    torch.testing.assert_close(images, decoded, atol=1e-6, rtol=0)


@pytest.mark.parametrize("passes", [0, 2])
def test_an_image_depends_on_no_batch(student: LogitStudent, passes: int) -> None:
    labels = [i % 10 for i in range(11)]
    whole = Sampler(student, jacobi=passes)(labels, seed=7)
    parts = Sampler(student, jacobi=passes, batch_size=3)(labels, seed=7)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)
    sampler = Sampler(student, jacobi=passes)
    alone = sampler([labels[i] for i in (9, 2)], seed=7, indices=[9, 2])
    torch.testing.assert_close(alone, whole[[9, 2]], atol=1e-6, rtol=0)
    apart = sampler([labels[9], 5], seed=[7, 8], indices=[9, 0])
    torch.testing.assert_close(apart[:1], whole[9:10], atol=1e-6, rtol=0)
    assert (apart[1] - sampler([5], seed=7)[0]).abs().max() > 1e-3


def test_much_is_done_in_parts(student: LogitStudent, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Sampler(student, jacobi=2)(LABELS, output="tokens")
    monkeypatch.setattr("dd2_fast.sampling.jacobi._VALUES", 2 * 16 * 16)
    assert torch.equal(Sampler(student, jacobi=2)(LABELS, output="tokens"), whole)


def test_what_cannot_be_is_refused(student: LogitStudent, tmp_path: Path) -> None:
    for settings, message in (
        ({"jacobi": 17}, "jacobi: expected 0 to 16, the teacher's steps"),
        ({"jacobi": -1}, "jacobi: expected 0 to 16"),
        ({"jacobi": 1, "teacher_steps": 2}, "jacobi: expected with teacher_steps of 0 or 1, got 1"),
        ({"jacobi": 1, "dtype": "int8"}, 'jacobi: expected 0 with dtype "int8", got 1'),
        ({"dtype": "int8"}, "dtype: expected float32 networks on a CPU for"),
        ({"cfg": 2.0}, "cfg: expected with teacher_steps of at least 2 or jacobi alone"),
    ):
        with pytest.raises(ValueError, match=message):
            Sampler(student, **settings)
    with pytest.raises(TypeError, match="jacobi: expected"):
        Sampler(student, jacobi=1.5)
    sampler = Sampler(student, jacobi=1)
    with pytest.raises(ValueError, match="jacobi: expected 0 for a file, got 1"):
        export(sampler, tmp_path / "a.pt2")
    with pytest.raises(ValueError, match="got a LogitStudent, whose codes"):
        export(student, tmp_path / "a.pt2")
    mask = np.ones(sampler([0]).shape[2:], dtype=bool)
    with pytest.raises(ValueError, match="jacobi: expected a sampler with 0 for edits, got 1"):
        sampler.edit(sampler([0]), mask, [0])
    student.teacher = None
    with pytest.raises(ValueError, match="jacobi: 1 needs a model with a teacher"):
        Sampler(student, jacobi=1)


def test_a_job_is_of_its_teacher(student: LogitStudent, tmp_path: Path) -> None:
    sampler = Sampler(student, jacobi=1)
    run_job(sampler, [1, 2], PngFolder(tmp_path / "out"))
    student.teacher.classifier.bias.data.add_(torch.linspace(0, 1, 16))
    with pytest.raises(ValueError, match="holds another job, with other .*weights"):
        run_job(sampler, [1, 2, 3], PngFolder(tmp_path / "out"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["sample", "--labels", "3,1", "--quiet", "--out"]
    assert main([*argv, str(tmp_path / "a.png"), "--jacobi", "2"]) == 0
    expected = Sampler("digits", jacobi=2)([3, 1], output="np")
    found = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    assert np.abs(found[:8, :8] - expected[0]).max() <= 1
    assert main([*argv, str(tmp_path / "b.png"), "--jacobi", "2", "--teacher", "digits"]) == 2
    assert "--teacher: expected a model without one" in capsys.readouterr().err


def test_the_command_draws_at_another_temperature(tmp_path: Path, capsys: Any) -> None:
    digits: Any = Sampler("digits")
    student = LogitStudent.from_teacher(digits.teacher)
    save(tmp_path / "student.safetensors", student, tokenizer=digits.tokenizer)
    argv = ["sample", "--labels", "3,1", "--quiet", "--out", str(tmp_path / "out")]
    of_it = [*argv, "--model", str(tmp_path / "student.safetensors")]
    assert main([*of_it, "--temperature", "0.2"]) == 0
    student.tokenizer = digits.tokenizer
    expected = Sampler(student.at_temperature(0.2))([3, 1], output="np")
    assert not np.array_equal(expected, Sampler(student)([3, 1], output="np"))
    found = np.asarray(Image.open(tmp_path / "out" / "000000_3.png")).astype(int)
    assert np.abs(found - expected[0]).max() <= 1
    assert main([*of_it, "--temperature", "0.3"]) == 2  # the folder holds images of another
    assert "holds another job" in capsys.readouterr().err
    for value in ("0", "-1", "inf", "nan"):
        assert main([*of_it, "--temperature", value]) == 2
        assert "temperature: expected a positive, finite number" in capsys.readouterr().err
    assert main([*argv, "--temperature", "0.9"]) == 2
    expected_error = "--temperature: expected with a logit student, got a DD2Generator"
    assert expected_error in capsys.readouterr().err


def test_a_teacher_is_given_to_what_comes_without(tmp_path: Path, capsys: Any) -> None:
    digits: Any = Sampler("digits")
    student = LogitStudent.from_teacher(digits.teacher)
    save(tmp_path / "student.safetensors", student, tokenizer=digits.tokenizer)
    argv = [
        "sample",
        "--labels",
        "3,1",
        "--quiet",
        "--model",
        str(tmp_path / "student.safetensors"),
    ]
    argv += ["--out", str(tmp_path / "out"), "--jacobi", "2"]
    assert main(argv) == 2
    assert "jacobi: 2 needs a model with a teacher" in capsys.readouterr().err
    assert main([*argv, "--teacher", "digits"]) == 0
    student.teacher, student.tokenizer = digits.teacher, digits.tokenizer
    expected = Sampler(student, jacobi=2)([3, 1], output="np")
    found = np.asarray(Image.open(tmp_path / "out" / "000000_3.png")).astype(int)
    assert np.abs(found - expected[0]).max() <= 1
    assert main([*argv, "--jacobi", "1", "--teacher", "digits"]) == 2
    assert "with other jacobi" in capsys.readouterr().err
