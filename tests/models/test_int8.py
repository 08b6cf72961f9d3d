"""Layers by eight-bit integers: their definition in float64, and whole networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.test_prepared import at_work
from torch import nn
from torch.nn import functional as F

from dd2_fast.models import DD2Generator, LlamaGenTokenizer, VARTokenizer, int8
from dd2_fast.models.folded import FoldedUpsampling
from dd2_fast.models.kernels import linear
from dd2_fast.models.prepared import prepare
from dd2_fast.models.var.codec import Resample
from dd2_fast.sampling import Sampler
from dd2_fast.sampling.exporting import export

needs_vnni = pytest.mark.skipif(bool(int8.missing()), reason=str(int8.missing()))


def rounded(values: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
    """Symmetric, 127 steps to the largest of what the axes sum over, in float32 as the code."""
    scale = (np.abs(values).max(axis, keepdims=True) / np.float32(127)).astype(np.float32)
    return np.rint(values / scale).astype(np.float64) * scale


@needs_vnni
def test_products_are_those_of_rounded_rows() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(160, 130)
    x = torch.randn(2, 7, 160) * torch.logspace(-3, 3, 7)[None, :, None]
    x[1, 2] = 0
    flat = np.stack([rounded(row, (0,)) if row.any() else row for row in x.flatten(0, 1).numpy()])
    wanted = flat @ rounded(layer.weight.detach().numpy(), (1,)).T + layer.bias.detach().numpy()
    found = int8.Int8Linear(layer)
    scale = np.abs(wanted).max(1, keepdims=True)
    for result in (found(x), linear(x, found.weight, layer.bias)):
        assert np.abs(result.detach().flatten(0, 1).numpy() - wanted).max() < 2e-6 * scale.max()
        assert (np.abs(result.detach().flatten(0, 1).numpy() - wanted) < 4e-6 * scale).all()


@needs_vnni
@pytest.mark.parametrize("kind", ["three", "one", "stride", "doubles"])
def test_convolutions_are_those_of_rounded_images(kind: str) -> None:
    torch.manual_seed(1)
    size, settings = {
        "three": (3, {"padding": 1}), "one": (1, {}), "stride": (3, {"stride": 2}),
        "doubles": (3, {"padding": 1}),
    }[kind]  # fmt: skip
    conv = nn.Conv2d(64, 72, size, **settings)
    x = torch.randn(3, 64, 9, 8) * torch.tensor([0.1, 1.0, 30.0])[:, None, None, None]
    x[1].abs_()  # whose least is no zero
    found = int8.Int8Conv(conv, doubles=kind == "doubles")(x).detach()
    weight = torch.from_numpy(rounded(conv.weight.detach().numpy(), (1, 2, 3)))
    for image, result in zip(x, found, strict=True):
        values = image.numpy().astype(np.float64)
        least, most = min(values.min(), 0.0), max(values.max(), 0.0)
        step = (most - least) / 254
        zero = round(-least / step)
        kept = (np.floor(values / step + zero + 0.5) - zero) * step
        near_tie = np.abs(values / step + zero + 0.5 - np.rint(values / step + zero + 0.5)) < 1e-4
        kept = torch.from_numpy(kept)[None]
        if kind == "doubles":
            kept = F.interpolate(kept, scale_factor=2.0, mode="nearest")
        bias = conv.bias.detach().double()
        wanted = F.conv2d(kept, weight, bias, conv.stride, conv.padding)[0]
        # A tie may be rounded either way: a step times a weight.
        ties = step * float(weight.abs().max()) if near_tie.any() else 0.0
        assert float((result - wanted).abs().max()) < 4e-6 * float(wanted.abs().max()) + ties


def var_generator() -> Any:
    """A VAR generator large enough for some of its layers to be rounded."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(dimension=8, num_classes=10, width=128, layers=2, heads=2)
    generator = DD2Generator(
        family="var", head_width=32, head_depth=2, patch_nums=(1, 2, 4), **sizes
    )
    generator.tokenizer = VARTokenizer(
        patch_nums=(1, 2, 4), vocabulary=16, dimension=8, channels=64, multipliers=(1, 2), blocks=1
    )
    at_work(generator.tokenizer)
    return at_work(generator)


def psnr(images: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(-10 * (images - wanted).double().square().mean().log10())


@needs_vnni
def test_whole_networks() -> None:
    generator = var_generator()
    wanted = Sampler(generator)([1, 2, 3], seed=5)
    sampler = Sampler(generator, dtype="int8")
    images = sampler([1, 2, 3], seed=5)
    assert 30 < psnr(images, wanted) < 90
    layers = [m for m in prepare(generator, int8=True).modules() if isinstance(m, int8.Int8Linear)]
    assert len(layers) == 2 * 4  # qkv, proj, fc1 and fc2 of each block; the head is too narrow
    # An image alone is that of its batch: to roundings, of which few cross a tie.
    alone = sampler([2], seed=5, start_index=1)
    assert psnr(alone, images[1:2]) > 60
    # Changes in place are followed, and neither the network nor its float32 form sees any of it.
    with torch.no_grad():
        generator.backbone.blocks[0].ffn.fc1.weight.mul_(3)
        generator.tokenizer.decoder.conv_out.bias.add_(0.1)
        generator.tokenizer.decoder.mid.block_1.conv1.weight.mul_(2)
    again = Sampler(generator)([1, 2, 3], seed=5)
    assert psnr(again, wanted) < 30 < psnr(sampler([1, 2, 3], seed=5), again)
    assert not any(isinstance(m, int8.Int8Conv) for m in sampler.modules())
    assert all(p.dtype == torch.float32 for p in sampler.parameters())


@needs_vnni
def test_llamagen() -> None:
    """Whose adapter reads a weight's dtype, and whose first two products of an MLP are one."""
    torch.manual_seed(0)
    generator = DD2Generator(
        family="llamagen", head_width=32, head_depth=2, dimension=8, num_classes=10, width=128,
        layers=2, heads=2, hidden=256, grid=4, vocabulary=64, adapter_width=128,
    )  # fmt: skip
    generator.tokenizer = LlamaGenTokenizer(
        channels=32, multiples=(1, 2), latents=32, blocks=1, vocabulary=64, dimension=8
    )
    at_work(generator.tokenizer)
    at_work(generator)
    wanted = Sampler(generator)([1, 2, 3], seed=5)
    assert 30 < psnr(Sampler(generator, dtype="int8")([1, 2, 3], seed=5), wanted) < 90
    layers = [m for m in prepare(generator, int8=True).modules() if isinstance(m, int8.Int8Linear)]
    assert len(layers) == 2 * 4 + 1  # wqkv, wo, w1 with w3, and w2 of each block; the adapter's


@needs_vnni
def test_upsampling_is_rounded_before_it_is_doubled() -> None:
    torch.manual_seed(2)
    step = Resample(64, doubles=True)
    x = torch.randn(1, 64, 6, 6)
    network = nn.Sequential(FoldedUpsampling(step))
    assert int8.to_int8(network) == 1
    assert psnr(network(x).detach(), step(x).detach()) > 35


@needs_vnni
def test_what_is_not_finite_comes_out() -> None:
    generator = var_generator()
    with torch.no_grad():
        generator.tokenizer.decoder.conv_in.bias[0] = torch.inf
    with pytest.raises(FloatingPointError, match="decoder"):
        Sampler(generator, dtype="int8")(0)
    layer = int8.Int8Linear(nn.Linear(128, 128))
    x = torch.ones(3, 128)
    x[0, 5], x[1, 7] = torch.nan, torch.inf
    result = layer(x)
    assert result[:2].isnan().all() and result[2].isfinite().all()


def test_refusals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match='dtype: expected a floating torch.dtype .*, or "int8"'):
        Sampler("digits", dtype="int4")
    monkeypatch.setattr(int8, "missing", lambda: None)
    hooked = var_generator()
    hooked.tokenizer.decoder.register_forward_hook(lambda *arguments: None)
    hooked.register_forward_hook(lambda *arguments: None)
    for unprepared in ("digits", hooked):
        with pytest.raises(ValueError, match="no layer of these networks is large enough"):
            Sampler(unprepared, dtype="int8")
    sampler = Sampler(var_generator(), dtype="int8")
    with pytest.raises(ValueError, match="compile: expected a sampler of another dtype"):
        sampler.compile()
    with pytest.raises(ValueError, match="model: expected a sampler of another dtype"):
        export(sampler, tmp_path / "x.pt2")
    generator = var_generator().to(torch.bfloat16)
    generator.tokenizer.to(torch.bfloat16)
    with pytest.raises(ValueError, match="bfloat16 on cpu"):
        Sampler(generator, dtype="int8")
    monkeypatch.setattr(int8, "missing", lambda: "the processor has none")
    with pytest.raises(ValueError, match='for "int8", but the processor has none'):
        Sampler(var_generator(), dtype="int8")
