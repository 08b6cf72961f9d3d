"""The public models' numbers: every array of the VAR fixtures, float32 on the CPU."""

from __future__ import annotations

import pytest
import torch
from parity import var_models
from parity.var_models import relative_rms

LIMIT = 1e-4  # parity/README: agreement expected of float32 on a CPU

TEACHER = var_models.arrays("var_tiny")
STUDENT = var_models.arrays("dd1_var_tiny")


@pytest.fixture(scope="module")
def teacher():
    return var_models.teacher()


def embeddings(teacher, prefix: str) -> torch.Tensor:
    return TEACHER["cont_embeddings"] if prefix else teacher.tokenizer.embed(TEACHER["tokens"])


@pytest.mark.parametrize("prefix", ["", "cont_"], ids=["tokens", "continuous"])
def test_tokenizer(teacher, prefix: str):
    tokenizer, x = teacher.tokenizer, embeddings(teacher, prefix)
    assert relative_rms(tokenizer.next_inputs(x), TEACHER[f"{prefix}var_input"]) < LIMIT
    assert relative_rms(tokenizer.f_hat(x), TEACHER[f"{prefix}f_hat"]) < LIMIT
    assert relative_rms(2 * tokenizer.decode(x) - 1, TEACHER[f"{prefix}image"]) < LIMIT


@pytest.mark.parametrize("prefix", ["", "cont_"], ids=["tokens", "continuous"])
def test_teacher_logits(teacher, prefix: str):
    x, labels = embeddings(teacher, prefix), TEACHER["labels"]
    assert relative_rms(teacher.logits(x, labels), TEACHER[f"{prefix}logits"]) < LIMIT
    features = teacher(x, labels)
    torch.testing.assert_close(teacher.head(features), teacher.logits(x, labels))


def test_teacher_reads_tokens_and_the_null_class(teacher):
    tokens, labels = TEACHER["tokens"], TEACHER["labels"]
    assert relative_rms(teacher.logits(tokens, labels), TEACHER["logits"]) < LIMIT
    null = torch.full_like(labels, teacher.num_classes)
    assert relative_rms(teacher.logits(tokens, null), TEACHER["logits_uncond"]) < LIMIT


@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_greedy_images(teacher, cfg: float):
    tokens = teacher.sample(TEACHER["labels"], cfg=cfg, top_k=1)
    images = teacher.tokenizer.decode(teacher.tokenizer.embed(tokens))
    assert relative_rms(images, TEACHER[f"greedy_image_cfg{cfg}"]) < LIMIT


@pytest.mark.parametrize("steps", [1, 2])
def test_student(steps: int):
    student = var_models.student()
    x = student(STUDENT["noise"], STUDENT["labels"], steps=steps)
    expected = STUDENT[f"embeddings_{steps}step"]
    assert relative_rms(x, expected) < LIMIT
    start = student.tokenizer.scales.slices[2].start  # below the split the embeddings are codes
    codebook = student.codebook
    assert torch.equal(
        torch.cdist(x[:, :start], codebook).argmin(-1),
        torch.cdist(expected[:, :start], codebook).argmin(-1),
    )
    assert relative_rms(student.tokenizer.decode(x), STUDENT[f"image_{steps}step"]) < LIMIT
