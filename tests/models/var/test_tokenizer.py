"""VAR's tokenizer: the encoder against plain code, half precision by PSNR, scales, bad input."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from models.var import plain
from parity import var_models
from parity.var_models import relative_rms

from dd2_fast.models.var import VARTokenizer

ARRAYS = var_models.arrays("var_tiny")
# Rounding to 8 bits is uniform over 1/255: what is below it, no image file shows.
EIGHT_BITS = 10 * math.log10(12 * 255**2)


@pytest.fixture(scope="module")
def tokenizer() -> VARTokenizer:
    return var_models.tokenizer()


@pytest.fixture(scope="module")
def images(tokenizer) -> torch.Tensor:
    return tokenizer.decode(ARRAYS["cont_embeddings"])


def test_encoder_against_plain_code(tokenizer, images):
    features = tokenizer.quant_conv(tokenizer.encoder(2 * images - 1))
    state = {name: value.double() for name, value in tokenizer.state_dict().items()}
    assert relative_rms(features, plain.encoder(state, 2 * images.double() - 1)) < 1e-5
    assert torch.equal(tokenizer.encode(images), tokenizer.quantize.encode(features))


def test_images_to_images(tokenizer, images):
    tokens = tokenizer.encode(images)
    assert tokens.shape == (3, 30) and tokens.dtype == torch.int64
    assert int(tokens.min()) >= 0 and int(tokens.max()) < 64
    assert torch.equal(tokenizer.embed(tokens), tokenizer.codebook[tokens])
    again = tokenizer.decode(tokenizer.embed(tokens))
    assert again.shape == images.shape == (3, 3, 64, 64)
    assert float(again.min()) >= 0 and float(again.max()) <= 1
    assert torch.equal(tokens[1:2], tokenizer.encode(images[1:2]))


def test_a_bad_image_spoils_no_other(tokenizer, images):
    broken = images.clone()
    broken[1, 0, 3, 5] = torch.nan
    tokens = tokenizer.encode(broken)
    assert bool((tokens[1] == -1).all())
    assert torch.equal(tokens[[0, 2]], tokenizer.encode(images)[[0, 2]])


def psnr(got: torch.Tensor, expected: torch.Tensor) -> float:
    return -10 * math.log10(float((got - expected).double().square().mean()))


@pytest.mark.parametrize(
    ("dtype", "least"),
    # fp16: no more than rounding to 8 bits. bf16, 8 times coarser: within 18 dB of that, the error
    # being of rounding and nothing else; an RMS of about two grey levels.
    [(torch.float16, EIGHT_BITS), (torch.bfloat16, EIGHT_BITS - 20 * math.log10(8))],
)
def test_half_precision_decoder(tokenizer, dtype: torch.dtype, least: float):
    single = tokenizer.with_patch_nums([1, 2])
    half = copy.deepcopy(single).to(dtype)
    for x in (torch.randn(4, 5, 8), single.embed(torch.randint(64, (4, 5)))):
        expected = single.decode(x)
        images = half.decode(x.to(dtype))
        assert images.dtype == torch.float32
        assert psnr(images, expected) > least


def test_other_scales_share_the_weights(tokenizer):
    other = tokenizer.with_patch_nums([1, 2])
    assert other.image_size == 32 and other.num_tokens == 5
    mine, theirs = dict(tokenizer.named_parameters()), dict(other.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(mine[name] is theirs[name] for name in mine)
    fresh = VARTokenizer(**other.config)
    fresh.load_state_dict(tokenizer.state_dict())
    x = torch.randn(2, 5, 8)
    assert torch.equal(other.decode(x), fresh.decode(x))
    assert other.encode(torch.full((1, 3, 32, 32), 0.3)).shape == (1, 5)


def test_decode_is_differentiable(tokenizer):
    x = ARRAYS["cont_embeddings"][:1].clone().requires_grad_()
    tokenizer.decode(x).square().sum().backward()
    assert bool((x.grad.abs().sum(-1) > 0).all())


def test_compiles_whole(tokenizer):
    fresh = copy.deepcopy(tokenizer)
    fresh.quantize._tables.clear()
    f_hat = torch.compile(fresh.f_hat, fullgraph=True, backend="aot_eager")
    x = ARRAYS["cont_embeddings"]
    torch.testing.assert_close(f_hat(x), tokenizer.f_hat(x))
    torch.testing.assert_close(fresh.f_hat(x), tokenizer.f_hat(x))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda t: t.encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), TypeError, "images"),
        (lambda t: t.encode("image"), TypeError, "images: expected a float torch.Tensor, got str"),
        (lambda t: t.encode(torch.zeros(1, 3, 64, 32)), ValueError, r"3, 64, 64\], got .*64, 32"),
        (lambda t: t.encode(torch.zeros(3, 64, 64)), ValueError, "images: expected shape"),
        (lambda t: t.embed(torch.zeros(1, 30)), TypeError, "tokens: expected dtype int64"),
        (lambda t: t.embed(torch.full((1, 30), 64)), ValueError, r"0\.\.63, got 64"),
        (lambda t: t.decode(torch.zeros(1, 29, 8)), ValueError, r"30, 8\] .*got \[1, 29, 8\]"),
        (lambda t: t.decode(torch.zeros(1, 30, 8).long()), TypeError, "embeddings"),
        (lambda t: t.next_inputs(torch.zeros(30, 8)), ValueError, "embeddings"),
        (lambda t: VARTokenizer(channels=48), ValueError, "channels: expected a multiple of 32"),
        (lambda t: t.with_patch_nums([4, 2]), ValueError, "patch_nums"),
    ],
)
def test_bad_input(tokenizer, call, error, words: str):
    with pytest.raises(error, match=words):
        call(tokenizer)
