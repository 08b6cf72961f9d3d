"""The tokenizers: rasters of any size, half precision, bad input."""

from __future__ import annotations

import copy

import pytest
import torch
from parity import llamagen_models as parity

from dd2_fast.models.llamagen import LlamaGenTokenizer
from dd2_fast.models.llamagen.vq import AttentionBlock

LIMITS = {torch.bfloat16: 38.0, torch.float16: 56.0}  # dB


@pytest.fixture(scope="module")
def tokenizer() -> LlamaGenTokenizer:
    return parity.make_tokenizer().requires_grad_(False)


def psnr(got: torch.Tensor, want: torch.Tensor) -> float:
    """Of images in [0, 1], unclamped."""
    return float(-10 * (got.double() - want.double()).square().mean().log10())


@pytest.mark.parametrize("side", [1, 3, 6])
def test_any_square_raster_goes_both_ways(tokenizer, side: int):
    images = torch.rand(2, 3, 4 * side, 4 * side)
    tokens = tokenizer.encode(images)
    assert tokens.shape == (2, side * side) and tokens.dtype == torch.int64
    distances = torch.cdist(tokenizer.latents(images).double(), tokenizer.codebook.double())
    assert torch.equal(tokens, distances.argmin(-1))
    decoded = tokenizer.decode(tokenizer.embed(tokens))
    assert decoded.shape == images.shape
    assert decoded.min() >= 0 and decoded.max() <= 1


def test_images_are_decoded_one_by_one(tokenizer):
    vectors = torch.randn(3, 9, 8)
    together = tokenizer.decode(vectors)
    for i in range(3):
        torch.testing.assert_close(tokenizer.decode(vectors[i : i + 1])[0], together[i])
    assert tokenizer.decode(vectors[:0]).shape == (0, 3, 12, 12)


def test_tokens_are_in_raster_order(tokenizer):
    """A change of the last token changes the lower right corner of the picture most."""
    vectors = torch.randn(1, 64, 8)
    other = vectors.clone()
    other[:, 7] += 1
    change = (tokenizer.reconstruct(other) - tokenizer.reconstruct(vectors)).abs().mean(1)[0]
    peak = int(change.argmax())
    assert peak // 32 < 8 and peak % 32 >= 24


def test_attention_is_softmax_over_positions():
    block = AttentionBlock(32, 32).double()
    x = torch.randn(1, 32, 2, 3, dtype=torch.float64)
    h = block.norm(x)
    q, k, v = (f(h)[0].flatten(1) for f in (block.q, block.k, block.v))
    mixed = v @ (q.T @ k / 32**0.5).softmax(-1).T
    want = x + block.proj_out(mixed.view(1, 32, 2, 3))
    torch.testing.assert_close(block(x), want)


@pytest.mark.parametrize("dtype", LIMITS)
def test_half_precision_decoder(tokenizer, dtype):
    """As PSNR against float32: 8-bit pixels round at 59 dB, and tokens cost far more than 38."""
    vectors = tokenizer.codebook[torch.randint(64, (4, 16))]
    want = tokenizer.reconstruct(vectors) / 2
    half = copy.deepcopy(tokenizer).to(dtype)
    got = half.reconstruct(vectors)
    assert got.dtype == dtype
    assert psnr(got / 2, want) > LIMITS[dtype]
    assert half.codebook.dtype == torch.float32
    other = vectors.clone()
    other[:, 5] = vectors[:, 6]
    assert psnr(tokenizer.reconstruct(other) / 2, want) < 30, "one wrong token is told apart"
    agree = half.encode(torch.rand(4, 3, 32, 32)).shape
    assert agree == (4, 64)


def test_a_grid_fixes_the_size():
    tokenizer = LlamaGenTokenizer(
        channels=32, multiples=(1, 1), latents=8, blocks=1, vocabulary=5, dimension=2, grid=3
    )
    assert tokenizer.encode(torch.rand(1, 3, 6, 6)).shape == (1, 9)
    with pytest.raises(ValueError, match=r"images: expected shape \['B', 3, 6, 6\], got \[1, 3, 8"):
        tokenizer.encode(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"embeddings: expected shape \['B', 9, 2\]"):
        tokenizer.decode(torch.rand(1, 4, 2))
    with pytest.raises(ValueError, match=r"tokens: expected shape \['B', 9\]"):
        tokenizer.embed(torch.zeros(1, 4).long())


@pytest.mark.parametrize(
    ("method", "value", "error", "message"),
    [
        ("encode", torch.rand(1, 3, 8, 12), ValueError, r"'B', 3, S, S.*multiple of 4, got \[1, 3"),
        ("encode", torch.rand(1, 3, 6, 6), ValueError, "S a multiple of 4, got"),
        ("encode", torch.rand(1, 1, 8, 8), ValueError, r"images: expected shape .*\[1, 1, 8, 8\]"),
        ("encode", torch.zeros(1, 3, 8, 8).byte(), TypeError, "images: expected a float .*uint8"),
        ("encode", [[1.0]], TypeError, "images: expected a float torch.Tensor, got list"),
        ("encode", torch.tensor(1.0), ValueError, r"images: expected shape .*got \[\]"),
        ("embed", torch.full((1, 4), 64), ValueError, "tokens: expected values in 0..63, got 64"),
        (
            "embed",
            torch.zeros(1, 5).long(),
            ValueError,
            "tokens: expected n to be a square",
        ),
        ("embed", torch.zeros(1, 4), TypeError, "tokens: expected dtype int64, got float32"),
        ("decode", torch.zeros(1, 5, 8), ValueError, "embeddings: expected n to be a square"),
        ("decode", torch.zeros(1, 4, 7), ValueError, r"embeddings: expected shape \['B', 4, 8\]"),
        ("decode", torch.zeros(4, 8), ValueError, r"embeddings: expected shape .*got \[4, 8\]"),
        ("decode", torch.zeros(1, 4).long(), TypeError, "embeddings: expected a floating dtype"),
    ],
)
def test_bad_input(tokenizer, method: str, value, error, message: str):
    with pytest.raises(error, match=message):
        getattr(tokenizer, method)(value)


def test_bad_sizes():
    with pytest.raises(ValueError, match=r"channels: expected a multiple of 32 \(groups\), got 48"):
        LlamaGenTokenizer(channels=48)
    with pytest.raises(ValueError, match="multiples: expected at least one resolution"):
        LlamaGenTokenizer(multiples=())
    with pytest.raises(ValueError, match="grid: expected at least 1, got 0"):
        LlamaGenTokenizer(grid=0)
