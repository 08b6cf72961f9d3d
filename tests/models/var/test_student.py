"""DD1's VAR students: what a token sees, the second step, sampling, bad input."""

from __future__ import annotations

import copy

import pytest
import torch
from parity import var_models
from parity.var_models import PATCH_NUMS, relative_rms

import dd2_fast
from dd2_fast.models.var import DD1VARStudent, VARTeacher
from dd2_fast.models.var.attention import LowerScales, StrictlyLowerScales
from dd2_fast.models.var.scales import Scales, token_slices

LABELS = torch.tensor([3, 10])
LEVELS = torch.tensor([0, *(k + 1 for k, side in enumerate(PATCH_NUMS) for _ in range(side**2))])


@pytest.fixture(scope="module")
def student() -> DD1VARStudent:
    return var_models.student()


def noise(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 30, 8)


def dense(q, k, v, mask, scale):
    score = (q.double() @ k.double().transpose(-1, -2) * scale).masked_fill(~mask, -torch.inf)
    return (score.softmax(-1) @ v.double()).float()


def test_attention_scale_by_scale_equals_a_dense_mask():
    q, k, v = torch.randn(3, 2, 3, 31, 8).unbind()
    lower = LEVELS[:, None] > LEVELS[None]
    strictly = StrictlyLowerScales(token_slices([1, 1, 4, 9, 16]), q.device)
    expected = dense(q, k, v, lower | torch.eye(31, dtype=torch.bool), 0.3)
    torch.testing.assert_close(strictly(q, k, v, 0.3), expected, rtol=1e-5, atol=1e-5)
    q, k, v, levels = q[:, :, 1:], k[:, :, 1:], v[:, :, 1:], LEVELS[1:]
    expected = dense(q, k, v, levels[:, None] >= levels[None], 0.3)
    slices = Scales.of(PATCH_NUMS).slices
    torch.testing.assert_close(LowerScales(slices)(q, k, v, 0.3), expected, rtol=1e-5, atol=1e-5)


def test_a_token_sees_lower_scales_and_its_own_noise():
    student = var_models.student(split=0)  # codes of the classifier have no gradient
    x = noise(1).requires_grad_()
    out = student(x, LABELS[:1])
    for i in range(30):
        (gradient,) = torch.autograd.grad(out[0, i].sum(), x, retain_graph=True)
        reached = gradient[0].abs().sum(-1) > 0
        seen = (LEVELS[1:] < LEVELS[i + 1]) | (torch.arange(30) == i)
        assert torch.equal(reached, seen)


@pytest.mark.parametrize("split", range(5))
def test_split_joins_the_two_heads(split: int):
    """Below the split as the classifier alone makes them, above it as the other head alone does."""
    eps = noise()
    start = [0, 1, 5, 14, 30][split]
    codes, drawn = (var_models.student(split=s)(eps, LABELS) for s in (4, 0))
    got = var_models.student(split=split)(eps, LABELS)
    torch.testing.assert_close(got, torch.cat([codes[:, :start], drawn[:, start:]], 1))
    codebook = var_models.student().codebook
    assert bool((codes[:, :, None] == codebook).all(-1).any(-1).all())


@pytest.mark.parametrize("second_step", [1, 2, 3])
def test_second_step_keeps_what_is_below(second_step: int):
    student = var_models.student(second_step=second_step)
    eps, start = noise(), [0, 1, 5, 14][second_step]
    one, two = student(eps, LABELS), student(eps, LABELS, steps=2)
    assert torch.equal(one[:, :start], two[:, :start])
    changed = (one != two).any(-1).any(0)
    assert bool(changed[max(start, 5) :].all())  # tokens below the split may keep their code


def test_default_second_step_is_the_split():
    assert var_models.student(split=3).config["second_step"] == 3
    assert var_models.student(split=0).config["second_step"] == 1
    assert var_models.student(split=4).config["second_step"] == 3


def test_samples_images(student):
    labels = [1, 2, 3]
    images = dd2_fast.sample(student, labels, seed=4)
    assert images.shape == (3, 3, 64, 64) and images.dtype == torch.float32
    assert float(images.min()) >= 0 and float(images.max()) <= 1
    torch.testing.assert_close(images, dd2_fast.sample(student, labels, seed=4, batch_size=2))
    latent = dd2_fast.sample(student, labels, seed=4, output="latent")
    torch.testing.assert_close(student.tokenizer.decode(latent), images)
    tokens = dd2_fast.sample(student, labels, seed=4, output="tokens")
    assert tokens.shape == (3, 30) and tokens.dtype == torch.int64
    assert not torch.equal(images, dd2_fast.sample(student, labels, seed=5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(student, dtype: torch.dtype):
    """All tokens from the continuous head: a code flips at a tie, so only it has an error."""
    single = var_models.student(split=0)
    half = copy.deepcopy(single).to(dtype)
    half.tokenizer = single.tokenizer
    eps = noise()
    out = half(eps, LABELS)
    assert out.dtype == eps.dtype
    limit = 20**0.5 * 2.0 ** (-8 if dtype == torch.bfloat16 else -11)
    assert relative_rms(out, single(eps, LABELS)) < limit
    assert dd2_fast.sample(half, [1], seed=0).shape == (1, 3, 64, 64)


def test_attachments_are_not_saved(student):
    model = DD1VARStudent(**student.config)
    names = set(model.state_dict())
    model.tokenizer, model.teacher = student.tokenizer, var_models.teacher()
    assert set(model.state_dict()) == names and isinstance(model.teacher, VARTeacher)
    with pytest.raises(RuntimeError, match="tokenizer: DD1VARStudent needs VAR's tokenizer"):
        DD1VARStudent(**student.config)(noise(), LABELS)


def test_compiles_whole(student):
    compiled = torch.compile(student, fullgraph=True, backend="aot_eager")
    eps = noise()
    torch.testing.assert_close(compiled(eps, LABELS), student(eps, LABELS))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s: s(noise(), LABELS, steps=3), ValueError, "steps: expected 1 or 2, got 3"),
        (lambda s: s(noise(), LABELS, steps=True), ValueError, "steps: expected 1 or 2"),
        (lambda s: s(noise()[:, :29], LABELS), ValueError, "noise: expected shape"),
        (lambda s: s(noise().long(), LABELS), TypeError, "noise: expected a floating dtype"),
        (lambda s: s(noise(), LABELS[:1]), ValueError, "labels"),
        (lambda s: s(noise(), LABELS + 1), ValueError, r"labels: expected values in 0\.\.10"),
        (lambda s: var_models.student(split=5), ValueError, r"split: expected a scale in 0\.\.4"),
        (lambda s: var_models.student(split=-1), ValueError, "split"),
        (lambda s: var_models.student(split=1.0), TypeError, "split: expected an int, got float"),
        (lambda s: var_models.student(second_step=0), ValueError, r"second_step: .*1\.\.3, got 0"),
        (lambda s: var_models.student(second_step=4), ValueError, "second_step"),
        (lambda s: var_models.student(second_step=True), TypeError, "second_step"),
    ],
)
def test_bad_input(student, call, error, words: str):
    with pytest.raises(error, match=words):
        call(student)
