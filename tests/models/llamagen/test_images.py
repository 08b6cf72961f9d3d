"""What LlamaGen offers to be trained on images: its codes by definition, its new networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dd2_fast.models.families import family_of
from dd2_fast.models.llamagen import LlamaGenTeacher, LlamaGenTokenizer
from dd2_fast.models.llamagen.images import IMAGES, LlamaGenCoding

SETTINGS = {
    **{"vocabulary": 12, "dimension": 3, "channels": 8, "multipliers": (1, 2), "blocks": 1},
    **{"latents": 6, "groups": 4},
}
TEACHER = {"width": 24, "layers": 2, "heads": 2}


def new_tokenizer(size: int = 8, channels: int = 1) -> LlamaGenTokenizer:
    torch.manual_seed(0)
    return IMAGES.tokenizer(size, channels, SETTINGS).double()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_codes_by_definition() -> None:
    """NumPy in float64: nearest by angle, errors at unit length, straight-through gradients."""
    coding = LlamaGenCoding(new_tokenizer())
    features = torch.randn(2, 3, 4, 4, dtype=torch.float32, requires_grad=True)
    with torch.no_grad():
        coding.codes.copy_(3 * torch.randn(12, 3))
    made = coding.code(features)
    book = unit(coding.codes.detach().double().numpy())
    z = unit(features.detach().double().permute(0, 2, 3, 1).flatten(0, 2).numpy())
    tokens = (z @ book.T).argmax(-1)
    assert np.array_equal(made.tokens.flatten().numpy(), tokens)
    error = np.square(book[tokens] - z).mean()
    assert float(made.vq.detach()) == pytest.approx(error, rel=1e-5)
    assert float(made.commitment.detach()) == pytest.approx(error, rel=1e-5)
    quantised = made.quantised.detach().permute(0, 2, 3, 1).flatten(0, 2)
    np.testing.assert_allclose(quantised.numpy(), book[tokens], atol=1e-6)
    np.testing.assert_allclose(made.rests.detach().numpy(), z, atol=1e-6)
    upstream = torch.randn_like(made.quantised)
    (found,) = torch.autograd.grad((made.quantised * upstream).sum(), features, retain_graph=True)
    f, g = (t.detach().double().permute(0, 2, 3, 1).numpy() for t in (features, upstream))
    f_unit, length = unit(f), np.linalg.norm(f, axis=-1, keepdims=True)
    wanted = (g - f_unit * (f_unit * g).sum(-1, keepdims=True)) / length
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), wanted, atol=1e-5)
    (of_codes,) = torch.autograd.grad(made.vq, coding.codes, retain_graph=True)
    assert set(of_codes.abs().sum(1).nonzero()[:, 0].tolist()) == set(tokens.tolist())
    assert torch.autograd.grad(made.vq, features, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(made.commitment, coding.codes, allow_unused=True) == (None,)


def test_start_finds_the_directions_there_are() -> None:
    tokenizer = new_tokenizer()
    coding = LlamaGenCoding(tokenizer)
    directions = F.normalize(torch.randn(2, 3), dim=-1)
    chosen = torch.arange(600) % 2
    lengths = 0.1 + 10 * torch.rand(600, 1)  # which do not matter
    rows = lengths * (directions[chosen] + 0.01 * torch.randn(600, 3))
    features = rows.view(-1, 2, 2, 3).permute(0, 3, 1, 2).double()
    coding.start(features, torch.Generator().manual_seed(0))
    nearest = (coding.codes.detach().float() @ directions.T).amax(0)
    assert float(nearest.min()) > 0.999
    torch.testing.assert_close(coding.codes.norm(dim=-1), torch.ones(12).double())


def test_finish_leaves_what_tokens_mean() -> None:
    tokenizer = new_tokenizer()
    tokens, images = torch.randint(12, (5, 16)), torch.rand(4, 1, 8, 8).double()
    before = tokenizer.decode(tokenizer.embed(tokens)), tokenizer.encode(images)
    LlamaGenCoding(tokenizer).finish()
    weight = tokenizer.get_parameter("quantize.embedding.weight")
    torch.testing.assert_close(weight.norm(dim=-1), torch.ones(12).double())
    decoded = tokenizer.decode(tokenizer.embed(tokens))
    torch.testing.assert_close(decoded, before[0], atol=1e-12, rtol=0)
    assert torch.equal(tokenizer.encode(images), before[1])


def test_codes_of_new_tokenizers_have_the_size_of_noise() -> None:
    """Of unit mean square a coordinate; the weights are those of a released file."""
    tokenizer = new_tokenizer()
    codes = tokenizer.codebook
    torch.testing.assert_close(codes.square().mean(-1), torch.ones(12).double())
    released = LlamaGenTokenizer(**{**tokenizer.config, "code_length": 1.0}).double()
    released.load_state_dict(tokenizer.state_dict())
    assert torch.allclose(codes, math.sqrt(3) * released.codebook, atol=1e-12)
    images = torch.rand(3, 1, 8, 8).double()
    assert torch.equal(tokenizer.encode(images), released.encode(images))
    latents = tokenizer.latents(images), math.sqrt(3) * released.latents(images)
    torch.testing.assert_close(*latents, atol=1e-12, rtol=0)
    anything = torch.randn(3, 16, 3).double()
    decoded = tokenizer.decode(anything * math.sqrt(3)), released.decode(anything)
    torch.testing.assert_close(*decoded, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("width", "hidden"), [(24, 64), (96, 256), (768, 2048), (1024, 2816)])
def test_new_teachers(width: int, hidden: int) -> None:
    """SwiGLU's inner width is the public code's; all codes are as likely before training."""
    with torch.device("meta"):
        large = LlamaGenTokenizer(grid=4)
    tokenizer = new_tokenizer() if width < 100 else large
    with torch.device("cpu" if width < 100 else "meta"):
        settings = {**TEACHER, "width": width}
        teacher = IMAGES.teacher(tokenizer, 5, settings)
    assert isinstance(teacher, LlamaGenTeacher) and family_of(teacher).images is IMAGES
    assert teacher.config["hidden"] == hidden and teacher.num_tokens == 16
    assert teacher.get_parameter(IMAGES.classes).shape == (6, width)
    if width < 100:
        teacher.tokenizer = tokenizer
        logits = teacher.logits(torch.randint(12, (2, 16)), torch.tensor([0, 5]))
        assert not logits.any()


@pytest.mark.parametrize(
    ("size", "channels", "message"),
    [
        (9, 1, "data.size: expected a multiple of 2 .* got 9"),
        (8, 3, "data.channels: expected the tokenizer's 1, got 3"),
        (12, 1, "data.size: expected the tokenizer's 8 .* got 12"),
    ],
)
def test_images_that_do_not_fit(size: int, channels: int, message: str) -> None:
    tokenizer = new_tokenizer()
    if size == 9:
        tokenizer.grid = None
    with pytest.raises(ValueError, match=message):
        IMAGES.fit(tokenizer, size, channels)


def test_a_tokenizer_of_any_raster_is_fixed() -> None:
    tokenizer = LlamaGenTokenizer(channels=32, multiples=(1, 1), latents=4, blocks=1)
    assert tokenizer.image_size is None
    assert IMAGES.fit(tokenizer, 6, 3).config["grid"] == 3 and tokenizer.image_size == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 0}, "groups: expected at least 1, got 0"),
        ({"channels": 6}, r"channels: expected a multiple of 4 \(groups\), got 6"),
        ({"image_channels": 2}, "image_channels: expected 1 or 3, got 2"),
        ({"code_length": 0.4}, "code_length: expected at least 0.5, got 0.4"),
        ({"code_length": math.nan}, "code_length: expected at least 0.5, got nan"),
    ],
)
def test_bad_settings_of_a_tokenizer(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LlamaGenTokenizer(**{**new_tokenizer().config, **changes})
