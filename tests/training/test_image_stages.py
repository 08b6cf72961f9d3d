"""The stages that train on images: what they change, and that they learn."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training.image_files import shapes, write_npz

from dd2_fast.metrics.image_classifier import ImageClassifier, describe
from dd2_fast.models import VARTeacher, VARTokenizer
from dd2_fast.models.var.images import VARCoding, unit_scale
from dd2_fast.training.image_config import (
    DataConfig,
    ImageClassifierConfig,
    ImageTeacherConfig,
    ImageTokenizerConfig,
)
from dd2_fast.training.samples.image_batches import ImageData
from dd2_fast.training.schedule import cosine
from dd2_fast.training.stages import (
    ImageClassifierStage,
    ImageTeacherStage,
    ImageTokenizerStage,
)

CONFIG = ImageTokenizerConfig(
    patch_nums=(1, 2, 4),
    vocabulary=24,
    dimension=4,
    channels=8,
    multipliers=(1, 2, 2),
    groups=4,
    continuous_steps=8,
    steps=16,
    batch=16,
    start_images=40,
    restart_every=3,
)
SIZES = dict(patch_nums=CONFIG.patch_nums, vocabulary=24, dimension=4)


def _tokenizer(image_channels: int = 1) -> VARTokenizer:
    torch.manual_seed(0)
    tokenizer = VARTokenizer(
        **SIZES,
        channels=8,
        multipliers=(1, 2, 2),
        blocks=1,
        groups=4,
        image_channels=image_channels,
    )
    return tokenizer


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    path = write_npz(tmp_path / "set.npz", *shapes(60))
    return ImageData.open(str(path), DataConfig(size=16, channels=1))


def _run(stage, steps: int | None = None) -> list[dict[str, float]]:
    rng = torch.Generator().manual_seed(1)
    stage.prepare()
    told = []
    for index in range(stage.steps if steps is None else steps):
        told.append({k: float(v) for k, v in stage.step(index, rng).items()})
    return told


def test_quantised_is_what_the_tokenizer_encodes() -> None:
    """Tokens and ``f_hat`` are those of the inference code, whose parity tests hold it."""
    tokenizer = _tokenizer()
    features = torch.randn(3, 4, 4, 4, requires_grad=True)
    made = VARCoding(tokenizer).code(features)
    assert torch.equal(made.tokens, tokenizer.quantize.encode(features.detach()))
    f_hat = tokenizer.f_hat(tokenizer.embed(made.tokens))
    torch.testing.assert_close(made.quantised.detach(), f_hat.detach(), atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(f_hat)
    (gradient,) = torch.autograd.grad(
        (made.quantised * upstream).sum(), features, retain_graph=True
    )
    assert torch.equal(gradient, upstream)  # straight through
    last = F.mse_loss(f_hat, features)
    partial = []
    for k in range(1, 3):  # of the first scales alone, the others' codes left out
        own = torch.zeros_like(tokenizer.embed(made.tokens))
        stop = tokenizer.scales.slices[k - 1].stop
        own[:, :stop] = tokenizer.embed(made.tokens)[:, :stop]
        bias = torch.zeros(4)  # what phi adds to empty maps
        empty = tokenizer.f_hat(torch.zeros_like(own))
        for j in range(k, 3):
            bias = bias + 0.5 * tokenizer.quantize._phi_of(j).bias.detach()
        maps = tokenizer.f_hat(own) - bias[:, None, None]
        assert empty.shape == maps.shape
        partial.append(F.mse_loss(maps, features))
    expected = (sum(partial) + last) / 3
    torch.testing.assert_close(made.vq.detach(), expected.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made.commitment.detach(), made.vq.detach())


def test_losses_reach_what_they_should() -> None:
    tokenizer = _tokenizer()
    features = torch.randn(2, 4, 4, 4, requires_grad=True)
    made = VARCoding(tokenizer).code(features)
    book = tokenizer.quantize.embedding.weight
    (of_codes,) = torch.autograd.grad(made.vq, book, retain_graph=True)
    used = torch.zeros(24, dtype=torch.bool)
    used[made.tokens.unique()] = True
    assert (of_codes.abs().sum(1) > 0).equal(used)
    assert torch.autograd.grad(made.vq, features, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(made.commitment, book, allow_unused=True)[0] is None


def test_unit_scale_changes_no_picture() -> None:
    """Exact: in float64 the same up to its rounding."""
    tokenizer = _tokenizer().double()
    with torch.no_grad():
        tokenizer.quantize.embedding.weight.mul_(torch.tensor([0.1, 3.0, 1.0, 40.0]))
    tokens = torch.randint(24, (5, tokenizer.num_tokens))
    before = tokenizer.decode(tokenizer.embed(tokens))
    features = tokenizer.features(torch.rand(2, 1, 16, 16).double())
    scale = unit_scale(tokenizer)
    assert torch.allclose(tokenizer.codebook.std(0, correction=0), torch.ones(4).double())
    torch.testing.assert_close(
        tokenizer.decode(tokenizer.embed(tokens)), before, atol=1e-12, rtol=0
    )
    torch.manual_seed(0)
    tokens = torch.randint(24, (5, tokenizer.num_tokens))
    images = torch.rand(2, 1, 16, 16).double()
    assert scale.shape == (4,) and features.shape == tokenizer.features(images).shape


@pytest.mark.slow
def test_tokenizer_stage_learns(data: ImageData) -> None:
    tokenizer = _tokenizer()
    config = dataclasses.replace(CONFIG, continuous_steps=25, steps=60, rate=4e-3)
    stage = ImageTokenizerStage(tokenizer, data.batches(16, 0), config)
    told = _run(stage)
    assert "vq" not in told[24] and "vq" in told[25]
    assert told[59]["reconstruction"] < 0.6 * told[0]["reconstruction"]
    assert told[25]["codes_used"] > 0.5  # k-means starts where the features are
    stage.finish()
    torch.testing.assert_close(tokenizer.codebook.std(0, correction=0), torch.ones(4))
    assert not any(p.requires_grad for p in tokenizer.parameters())


@pytest.mark.parametrize("dead", [1, 19])
def test_codes_that_nothing_uses_start_again(data: ImageData, dead: int) -> None:
    tokenizer = _tokenizer()
    stage = ImageTokenizerStage(tokenizer, data.batches(16, 0), CONFIG)
    rng = torch.Generator().manual_seed(1)
    stage.step(CONFIG.continuous_steps, rng)
    with torch.no_grad():
        tokenizer.quantize.embedding.weight[-dead:] = 1e4  # far from all features
    stage.buffers["usage"].fill_(1 / 24)
    stage.buffers["usage"][-dead:] = 0
    assert (CONFIG.continuous_steps + 1) % CONFIG.restart_every == 0
    stage.step(CONFIG.continuous_steps, rng)
    assert (tokenizer.codebook.abs().amax(1) < 1e3).all()  # and no NaN
    assert (stage.buffers["usage"] > 0).all()


def test_networks_of_the_users_own(data: ImageData) -> None:
    """A perceptual extractor gets no gradient; a discriminator learns to tell real from made."""
    torch.manual_seed(1)
    extractor = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    discriminator = nn.Conv2d(1, 1, 5)
    start = discriminator.weight.clone()
    stage = ImageTokenizerStage(
        _tokenizer(),
        data.batches(16, 0),
        CONFIG,
        features=extractor.requires_grad_(False),
        discriminator=discriminator,
    )
    told = _run(stage, 2)
    images, _ = stage.batches.take(0, torch.arange(16))
    assert {"perceptual", "adversarial", "discriminator"} <= set(told[0])
    assert told[0]["discriminator"] > 0 and not torch.equal(discriminator.weight, start)
    assert all(p.grad is None for p in extractor.parameters())
    assert all(p.requires_grad for p in discriminator.parameters()) and len(images) == 16
    plain = ImageTokenizerStage(_tokenizer(), data.batches(16, 0), CONFIG)
    assert "perceptual" not in _run(plain, 1)[0]


def _teacher() -> VARTeacher:
    torch.manual_seed(0)
    teacher = VARTeacher(**SIZES, num_classes=3, width=16, layers=2, heads=2)
    teacher.tokenizer = _tokenizer().eval().requires_grad_(False)
    return teacher


def test_teacher_stage_learns_and_ends_at_its_average(data: ImageData) -> None:
    teacher, average = _teacher(), _teacher()
    config = ImageTeacherConfig(steps=30, batch=16, rate=5e-3, warmup=5)
    stage = ImageTeacherStage(teacher, average, data.batches(16, 0), config)
    with torch.no_grad():
        average.head.bias.fill_(7)  # of no training: prepare takes it away
    told = _run(stage)
    assert told[-1]["nll"] < told[0]["nll"] - 0.3
    assert told[0]["nll"] == pytest.approx(math.log(24), abs=0.5)
    last = teacher.head.weight.clone()
    stage.finish()
    assert torch.equal(teacher.head.weight, average.head.weight)
    assert not torch.equal(teacher.head.weight, last)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_teacher_reads_the_null_class_as_often_as_it_should(data: ImageData) -> None:
    seen: list[torch.Tensor] = []
    for dropout in (0.0, 0.5, 1.0):
        teacher = _teacher()
        teacher.class_emb.register_forward_hook(lambda m, i, o: seen.append(i[0].clone()))
        config = ImageTeacherConfig(steps=4, batch=48, label_dropout=dropout)
        _run(ImageTeacherStage(teacher, _teacher(), data.batches(48, 0), config), 4)
        null = float((torch.cat(seen) == 3).double().mean())
        seen.clear()
        assert abs(null - dropout) <= 4 * (dropout * (1 - dropout) / 192) ** 0.5


def test_classifier_stage_learns(data: ImageData) -> None:
    torch.manual_seed(0)
    sizes = dict(image_size=16, in_channels=1, num_classes=3, width=8, feature_dim=8)
    classifier = ImageClassifier(**sizes)
    config = ImageClassifierConfig(steps=40, batch=24, rate=4e-3)
    stage = ImageClassifierStage(classifier, data.batches(24, 0), config)
    _run(stage)
    images, labels = data.load(data.train)
    features, predicted = describe(classifier, images, batch=7)
    assert features.shape == (len(labels), 8)
    assert float((predicted == labels).double().mean()) > 0.9
    with pytest.raises(ValueError, match=r"images: expected shape \['B', 1, 16, 16\]"):
        classifier(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("size", [3, 8, 28, 33])
def test_classifier_of_any_size(size: int) -> None:
    classifier = ImageClassifier(image_size=size, in_channels=3, num_classes=2, width=4)
    assert classifier(torch.rand(2, 3, size, size)).shape == (2, 2)


def test_cosine() -> None:
    values = [cosine(step, 100, warmup=10, floor=0.1) for step in range(100)]
    assert values[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert values[10] == 1.0 and values[99] == pytest.approx(0.1)
    assert values[54] == pytest.approx(0.55, abs=0.02)
    assert all(a >= b for a, b in zip(values[10:], values[11:], strict=False))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageTokenizerConfig(continuous_steps=10, steps=10), "continuous_steps: "),
        (lambda: ImageTokenizerConfig(vocabulary=3), "vocabulary: expected at least a code"),
        (lambda: ImageTokenizerConfig(usage_decay=1.5), "usage_decay: expected a share in"),
        (lambda: ImageTeacherConfig(label_dropout=2.0), "label_dropout: expected a share"),
        (lambda: DataConfig(channels=2), "channels: expected 1 or 3, got 2"),
        (lambda: DataConfig(crop="left"), "crop: expected one of center, random, pad, squeeze"),
        (lambda: DataConfig(on_error="stop"), "on_error: expected one of skip, refuse"),
        (lambda: DataConfig(size=0), "size: expected a positive number"),
        (lambda: VARTokenizer(channels=8, groups=3), r"channels: expected a multiple of 3"),
        (lambda: VARTokenizer(groups=0), "groups: expected at least 1"),
        (lambda: VARTokenizer(image_channels=2), "image_channels: expected 1 or 3"),
    ],
)  # fmt: skip
def test_bad_settings(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
