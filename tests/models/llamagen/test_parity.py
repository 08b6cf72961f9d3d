"""Every array of the LlamaGen fixtures."""

from __future__ import annotations

import pytest
import torch
from parity import llamagen_models as parity
from parity.llamagen_models import relative

from dd2_fast.models.llamagen import LlamaGenTeacher

LIMIT = 1e-4


@pytest.fixture(scope="module")
def want() -> dict[str, torch.Tensor]:
    return parity.arrays("llamagen_tiny")


@pytest.fixture(scope="module")
def teacher() -> LlamaGenTeacher:
    return parity.make_teacher()


def test_codebook_is_normalised(teacher, want):
    assert relative(teacher.tokenizer.codebook, want["codebook"]) < LIMIT
    assert relative(teacher.codebook, want["codebook"]) < LIMIT


def test_encode(teacher, want):
    tokens = teacher.tokenizer.encode((want["encode_input"] + 1) / 2)
    assert torch.equal(tokens, want["encode_tokens"])


@torch.no_grad()
def test_decode(teacher, want):
    tokenizer = teacher.tokenizer
    for embeddings, image in (
        (tokenizer.embed(want["tokens"]), want["image"]),
        (want["cont_embeddings"], want["cont_image"]),
    ):
        assert relative(tokenizer.reconstruct(embeddings), image) < LIMIT
        unit = (image / 2 + 0.5).clamp(0, 1)
        assert relative(tokenizer.decode(embeddings), unit) < LIMIT


@torch.no_grad()
def test_logits(teacher, want):
    null = torch.full_like(want["labels"], 10)
    for labels, name in ((want["labels"], "logits"), (null, "logits_uncond")):
        assert relative(teacher.logits(want["tokens"], labels), want[name]) < LIMIT
        embeddings = teacher.tokenizer.embed(want["tokens"])
        assert relative(teacher.logits(embeddings, labels), want[name]) < LIMIT


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_greedy_tokens(teacher, want, cfg: float):
    def largest(positions, logits, uncond):
        assert (uncond is None) == (cfg == 1.0) and logits.shape == (3, 1, 64)
        assert positions.stop == positions.start + 1
        return (logits if uncond is None else uncond + cfg * (logits - uncond)).argmax(-1)

    tokens = want[f"greedy_tokens_cfg{cfg}"].long()
    assert torch.equal(teacher.generate(want["labels"], largest, guided=cfg != 1.0), tokens)
    assert torch.equal(teacher.sample(want["labels"], cfg=cfg, top_k=1, seed=5), tokens)


@pytest.mark.parametrize("steps", [1, 2])
@torch.no_grad()
def test_student(steps: int):
    want = parity.arrays("dd1_llamagen_tiny")
    student = parity.make_student()
    x = student(want["noise"], want["labels"], steps=steps)
    assert relative(x, want[f"embeddings_{steps}step"]) < LIMIT
    codes = (x[:, :6, None] == want["codebook"]).all(-1).any(-1)
    assert codes.all(), "tokens before the split are codes"


def test_fixtures_have_no_other_arrays(want):
    read = {"tokens", "labels", "logits", "logits_uncond", "codebook", "image"}
    read |= {"cont_embeddings", "cont_image", "encode_input", "encode_tokens"}
    assert set(want) == read | {"greedy_tokens_cfg1.0", "greedy_tokens_cfg2.0"}
    read = {"labels", "noise", "codebook", "embeddings_1step", "embeddings_2step"}
    assert set(parity.arrays("dd1_llamagen_tiny")) == read
