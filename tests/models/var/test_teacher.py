"""VAR's backbone and teacher: plain code, causality, gradients, the KV cache, draws, bad input."""

from __future__ import annotations

import copy

import pytest
import torch
from models.var import plain
from parity import var_models
from parity.var_models import PATCH_NUMS, relative_rms
from torch import nn

from dd2_fast.losses.target import TeacherScore
from dd2_fast.models.sampling import step_seed
from dd2_fast.models.var import VARBackbone, VARTeacher, VARTokenizer

SIZES = dict(patch_nums=[1, 2, 3], dimension=4, num_classes=3, width=16, layers=2, heads=2)
LABELS = torch.tensor([0, 7])


@pytest.fixture(scope="module")
def teacher() -> VARTeacher:
    return var_models.teacher()


def make(dtype=torch.float32, **config) -> VARTeacher:
    """A small teacher of random weights with a tokenizer, whose modulation is not zero."""
    model = VARTeacher(vocabulary=9, **{**SIZES, **config})
    for name, parameter in model.named_parameters():
        if "ada_lin" in name:
            nn.init.normal_(parameter, std=0.3)
        if name.endswith("scale_mul_1H11"):  # one head below ln 100, one above it
            parameter.data[0, :, 0, 0] = torch.tensor([1.0, 6.0])
    model.tokenizer = VARTokenizer(
        patch_nums=model.config["patch_nums"], vocabulary=9, dimension=4, channels=32
    ).to(dtype)
    model.tokenizer.requires_grad_(False)
    return model.to(dtype).requires_grad_(False).eval()


@pytest.mark.parametrize("shared_aln", [False, True], ids=["own modulation", "shared"])
@pytest.mark.parametrize("l2_norm", [True, False], ids=["l2", "dot"])
def test_logits_against_plain_code(shared_aln: bool, l2_norm: bool):
    model = make(torch.float64, shared_aln=shared_aln, l2_norm=l2_norm)
    x = torch.randn(2, 14, 4, dtype=torch.float64)
    labels = torch.tensor([1, 3])
    inputs = model.tokenizer.next_inputs(x)
    expected = plain.logits(model.state_dict(), inputs, labels, [1, 2, 3], 2)
    torch.testing.assert_close(model.logits(x, labels), expected, rtol=1e-9, atol=1e-9)


def test_gradient_in_the_embeddings_is_the_finite_difference():
    model = make(torch.float64)
    backbone = VARBackbone(**SIZES).double()
    missing, unexpected = backbone.load_state_dict(model.state_dict(), strict=False)
    assert not missing and unexpected == ["head.weight", "head.bias"]
    backbone.tokenizer = model.tokenizer
    x = torch.randn(1, 14, 4, dtype=torch.float64)
    weight = torch.randn(1, 14, 16, dtype=torch.float64)
    labels = torch.tensor([2])

    def value(x: torch.Tensor) -> torch.Tensor:
        return (backbone(x, labels) * weight).sum()

    (gradient,) = torch.autograd.grad(value(x.requires_grad_()), x)
    step, differences = 1e-5, torch.zeros_like(x)
    with torch.no_grad():
        for i in range(x.numel()):
            unit = torch.zeros(x.numel(), dtype=torch.float64)
            unit[i] = step
            unit = unit.view_as(x)
            differences.view(-1)[i] = (value(x + unit) - value(x - unit)) / (2 * step)
    torch.testing.assert_close(gradient, differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("guided", [False, True])
def test_cache_agrees_with_teacher_forcing_of_shared_modulations(guided: bool):
    """Those of a block's own: tests/models/test_family.py."""
    model = make(torch.float64, shared_aln=True)
    labels, seen = torch.tensor([0, 3, 1]), []
    drawn = torch.randint(9, (3, 14))

    def choose(own, logits, uncond_logits):
        seen.append((logits, uncond_logits))
        return drawn[:, own]

    tokens = model.generate(labels, choose, guided=guided)
    assert torch.equal(tokens, drawn)
    logits = torch.cat([cond for cond, _ in seen], 1)
    torch.testing.assert_close(logits, model.logits(tokens, labels), rtol=1e-9, atol=1e-9)
    if guided:
        null = torch.full_like(labels, 3)
        uncond = torch.cat([u for _, u in seen], 1)
        torch.testing.assert_close(uncond, model.logits(tokens, null), rtol=1e-9, atol=1e-9)
    else:
        assert all(u is None for _, u in seen)


def test_guidance_rises_over_the_scales(teacher):
    scale = teacher.guidance_scale(1.5)
    expected = [1.0] + [1.5] * 4 + [2.0] * 9 + [2.5] * 16
    torch.testing.assert_close(scale, torch.tensor(expected))
    assert teacher.guidance_scale(0) == 1.0


def test_draws_follow_the_guided_distribution():
    """The first two scales' frequencies of one image against their probabilities."""
    model = make()
    draws, cfg = 4000, 2.0
    labels = torch.full((draws,), 1)
    tokens = model.sample(labels, cfg=cfg, seed=3)
    null = torch.full_like(labels, 3)
    cond, uncond = model.logits(tokens, labels), model.logits(tokens, null)
    scale = model.guidance_scale(cfg)[:, None]
    probabilities = (uncond + scale * (cond - uncond)).softmax(-1)
    for i in range(5):  # the expected counts are conditional on the lower scales
        counts = torch.bincount(tokens[:, i], minlength=9).double()
        expected = probabilities[:, i].double().sum(0)
        deviation = (counts - expected) / (expected * (1 - expected / draws)).sqrt()
        assert float(deviation.abs().max()) < 4.5


def test_filters_reach_the_draw(teacher):
    labels = LABELS.repeat(8)
    tokens = teacher.sample(labels, cfg=1.5, top_k=3, top_p=0.9, seed=1)
    null = torch.full_like(labels, teacher.num_classes)
    cond, uncond = teacher.logits(tokens, labels), teacher.logits(tokens, null)
    guided = uncond + teacher.guidance_scale(1.5)[:, None] * (cond - uncond)
    kept = guided.topk(3).indices
    assert bool((kept == tokens[..., None]).any(-1).all())
    assert not torch.equal(tokens, guided.argmax(-1))


def test_an_image_depends_on_the_seed_its_place_and_its_label(teacher):
    labels = torch.tensor([0, 1, 2, 3])
    tokens = teacher.sample(labels, cfg=1.5, seed=5)
    assert torch.equal(tokens, teacher.sample(labels, cfg=1.5, seed=5))
    assert torch.equal(tokens[:2], teacher.sample(labels[:2], cfg=1.5, seed=5))
    assert not torch.equal(tokens, teacher.sample(labels, cfg=1.5, seed=6))
    changed = teacher.sample(torch.tensor([0, 9, 2, 3]), cfg=1.5, seed=5)
    assert torch.equal(changed[[0, 2, 3]], tokens[[0, 2, 3]])
    assert not torch.equal(changed[1], tokens[1])


def test_scales_have_seeds_of_their_own():
    seeds = [step_seed(seed, k) for seed in (-(2**63), -1, 0, 1, 2**63 - 1) for k in range(10)]
    assert len(set(seeds)) == 50 and all(-(2**63) <= seed < 2**63 for seed in seeds)
    several = torch.tensor([-(2**63), -1, 0, 1, 2**63 - 1])
    assert torch.stack([step_seed(several, k) for k in range(10)], 1).flatten().tolist() == seeds


def test_steps_have_the_numbers_of_splitmix64():
    """Of its published definition, with the seed as its state."""
    for seed, position in ((0, 0), (1234567, 3), (-(2**63), 9)):
        z = (seed + (position + 1) * 0x9E3779B97F4A7C15) % 2**64
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> shift)) * factor % 2**64
        assert step_seed(seed, position) % 2**64 == z ^ (z >> 31)


@pytest.mark.parametrize(
    ("dtype", "limit"),
    # Two blocks of about ten roundings each, independent: 2^-8 and 2^-11 at a time.
    [(torch.bfloat16, 20**0.5 * 2**-8), (torch.float16, 20**0.5 * 2**-11)],
)
def test_half_precision(teacher, dtype: torch.dtype, limit: float):
    half = copy.deepcopy(teacher).to(dtype)
    half.tokenizer = copy.deepcopy(teacher.tokenizer).to(dtype)
    x = torch.randn(2, 30, 8)
    logits = half.logits(x.to(dtype), LABELS)
    assert logits.dtype == dtype
    assert relative_rms(logits.float(), teacher.logits(x, LABELS)) < limit
    assert half.sample(LABELS, cfg=1.5, top_k=5).shape == (2, 30)


def test_autocast(teacher):
    x = torch.randn(2, 30, 8)
    expected = teacher.logits(x, LABELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = teacher.logits(x.requires_grad_(), LABELS)
        tokens = teacher.sample(LABELS, cfg=1.5, top_k=1)
    assert relative_rms(logits.detach().float(), expected) < 20**0.5 * 2**-8
    logits.float().square().sum().backward()
    assert bool(x.grad.isfinite().all()) and tokens.shape == (2, 30)


def test_serves_as_the_teacher_of_the_losses(teacher):
    tokens = torch.randint(64, (2, 30))
    x_t, t = torch.randn(2, 30, 8), torch.full((2, 30), 0.4)
    guided = TeacherScore(teacher, cfg=2.0)(tokens, LABELS).predict(x_t, t, "x0")
    null = torch.full_like(LABELS, teacher.num_classes)
    cond, uncond = teacher.logits(tokens, LABELS), teacher.logits(tokens, null)
    ramp = torch.tensor([k / 3 for k, side in enumerate(PATCH_NUMS) for _ in range(side**2)])
    row = uncond + (1 + 2.0 * ramp)[:, None] * (cond - uncond)
    distance = (x_t[:, :, None] - 0.6 * teacher.codebook).square().sum(-1)
    expected = (row - distance / (2 * 0.4**2)).softmax(-1) @ teacher.codebook
    assert relative_rms(guided, expected) < 1e-4


def test_empty_batch(teacher):
    none = LABELS[:0]
    assert teacher.logits(torch.zeros(0, 30, 8), none).shape == (0, 30, 64)
    assert teacher.sample(none, cfg=1.5).shape == (0, 30)


def test_compiles_whole(teacher):
    logits = torch.compile(teacher.logits, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 30, 8)
    torch.testing.assert_close(logits(x, LABELS), teacher.logits(x, LABELS))


def test_the_tokenizer_is_attached_not_owned(teacher):
    assert not any("quantize" in name for name in teacher.state_dict())
    assert teacher.codebook.shape == (64, 8)
    bare = VARTeacher(**teacher.config)
    for call in (
        lambda: bare.codebook,
        lambda: bare.sample(LABELS, cfg=1.0),
        lambda: bare(torch.zeros(2, 30, 8), LABELS),
    ):
        with pytest.raises(RuntimeError, match="tokenizer: VARTeacher needs VAR's tokenizer"):
            call()


def test_a_tokenizer_of_other_scales_is_attached_at_the_models():
    model = VARTeacher(vocabulary=9, **SIZES)
    given = VARTokenizer(patch_nums=PATCH_NUMS, vocabulary=9, dimension=4, channels=32)
    model.tokenizer = given
    assert model.tokenizer.patch_nums == (1, 2, 3)
    assert model.tokenizer.quantize.embedding is given.quantize.embedding
    model.tokenizer = None
    with pytest.raises(TypeError, match="tokenizer: expected a VARTokenizer, got Linear"):
        model.tokenizer = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="codes of dimension 4, got 8"):
        model.tokenizer = VARTokenizer(patch_nums=[1, 2], dimension=8, channels=32, vocabulary=9)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda t: t.logits(torch.zeros(2, 30), LABELS), ValueError, "embeddings: expected shape"),
        (lambda t: t.logits(torch.zeros(2, 29, 8), LABELS), ValueError, "30, 8"),
        (lambda t: t.logits(torch.full((2, 30), 64), LABELS), ValueError, r"0\.\.63, got 64"),
        (lambda t: t.logits(torch.zeros(2, 30, 8), LABELS[:1]), ValueError, r"labels: .*\[2\]"),
        (lambda t: t.logits(torch.zeros(2, 30, 8), LABELS + 4), ValueError, r"0\.\.10"),
        (lambda t: t(torch.zeros(2, 30, 7), LABELS), ValueError, "embeddings"),
        (lambda t: t(torch.zeros(2, 30).long(), LABELS), TypeError, "embeddings"),
        (lambda t: t.sample(LABELS.float(), cfg=1.0), TypeError, "labels: expected dtype int64"),
        (lambda t: t.sample([1, 2], cfg=1.0), TypeError, "labels"),
        (lambda t: t.sample(LABELS, cfg="1"), TypeError, "cfg: expected a number"),
        (lambda t: t.sample(LABELS, cfg=float("nan")), ValueError, "cfg: expected a finite"),
        (lambda t: t.sample(LABELS, cfg=1.0, top_k=-1), ValueError, "top_k"),
        (lambda t: t.sample(LABELS, cfg=1.0, top_p=0.0), ValueError, "top_p"),
        (lambda t: t.sample(LABELS, cfg=1.0, seed=0.5), TypeError, "seed: expected an int"),
        (lambda t: t.sample(LABELS, cfg=1.0, seed=2**63), ValueError, "seed"),
        (lambda t: t.generate(LABELS, lambda *_: LABELS), ValueError, r"tokens: .*\['B', 1\]"),
        (lambda t: t.generate(LABELS, lambda own, x, _: x), TypeError, "tokens: expected dtype"),
        (lambda t: VARBackbone(**{**SIZES, "heads": 3}), ValueError, "width: expected a multiple"),
        (lambda t: VARBackbone(**{**SIZES, "patch_nums": [2]}), ValueError, "patch_nums"),
    ],
)
def test_bad_input(teacher, call, error, words: str):
    with pytest.raises(error, match=words):
        call(teacher)


def test_a_nan_in_the_weights_is_reported():
    model = make()
    model.head.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"tokens: .*got -1"):
        model.sample(torch.tensor([0]), cfg=1.0)
