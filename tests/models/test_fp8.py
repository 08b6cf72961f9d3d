"""Products in float8: their definition in float64, what torch's call is given, whole networks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.test_int8 import psnr, var_generator
from models.test_prepared import at_work
from torch import nn
from torch.nn import functional as F

from dd2_fast.models import DD2Generator, LlamaGenTokenizer, fp8
from dd2_fast.models.kernels import linear, linear_gelu
from dd2_fast.models.prepared import prepare
from dd2_fast.sampling import Sampler
from dd2_fast.sampling.exporting import export

SIZES = {
    "tiny": (1, 16, 16),
    "ragged rows": (7, 160, 48),
    "of a block": (40, 256, 1024),
}


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine, whose torch multiplies float8 without instructions, and narrow layers."""
    monkeypatch.setattr(fp8, "missing", lambda device=None: None)
    monkeypatch.setattr(fp8, "_OUTPUTS_PAY", 64)
    monkeypatch.setattr(fp8, "_INPUTS_PAY", 64)


def e4m3(values: np.ndarray) -> np.ndarray:
    """The nearest of the format's numbers, ties to even, of float64 up to 448: three bits after
    the leading one, exponents from -6, below which the steps stay."""
    exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(values), 1e-300))), -6)
    step = np.exp2(exponent - 3)
    return np.rint(values / step) * step


def rounded(rows: np.ndarray) -> np.ndarray:
    """Float32 rows, each by its largest, as they are read again."""
    scale = np.maximum(np.abs(rows).max(1, keepdims=True), np.float32(1e-30)) / np.float32(448)
    return e4m3((rows / scale).astype(np.float64)) * scale.astype(np.float64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_products_are_those_of_rounded_rows(size: tuple[int, int, int], bias: bool) -> None:
    count, inputs, outputs = size
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=bias).bfloat16()
    x = torch.randn(2, count, inputs) * torch.logspace(-3, 3, count)[:, None]
    x[1, -1] = 0
    x = x.bfloat16()
    weight = rounded(layer.weight.detach().float().numpy())
    terms = rounded(x.flatten(0, 1).float().numpy())
    wanted = terms @ weight.T
    # Float32 sums of D products, and one rounding to bfloat16, before or after the bias is added.
    budget = 2.0**-20 * (np.abs(terms) @ np.abs(weight).T) + 2.0**-8 * np.abs(wanted)
    if bias:
        wanted = wanted + layer.bias.detach().double().numpy()
        budget += 2.0**-8 * np.abs(wanted)
    found = fp8.Fp8Linear(layer)
    for result in (found(x), linear(x, found.weight, layer.bias)):
        assert result.dtype == torch.bfloat16 and result.shape == (2, count, outputs)
        error = np.abs(result.detach().flatten(0, 1).double().numpy() - wanted)
        assert (error <= budget + 1e-30).all(), (error / (budget + 1e-30)).max()


def test_what_torch_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA's products want: rows by columns, scales of either, sixteens, bfloat16."""
    given: list[Any] = []
    real = F.scaled_mm

    def recorded(*operands: Any, **settings: Any) -> torch.Tensor:
        given.append((operands, settings))
        return real(*operands, **settings)

    monkeypatch.setattr(F, "scaled_mm", recorded)
    layer = fp8.Fp8Linear(nn.Linear(96, 80).bfloat16())
    x = torch.randn(96, 5, 3).bfloat16().permute(2, 1, 0)  # inputs are not the last in memory
    assert layer(x).shape == (3, 5, 80)
    (a, b, scale_a, recipe_a, scale_b, recipe_b), settings = given[0]
    assert a.dtype == b.dtype == torch.float8_e4m3fn
    assert a.shape == (15, 96) and a.stride() == (96, 1)
    assert b.shape == (96, 80) and b.stride() == (1, 96)
    assert scale_a.dtype == scale_b.dtype == torch.float32
    assert scale_a.shape == (15, 1) and scale_b.shape == (1, 80)
    assert scale_a.is_contiguous() and scale_b.is_contiguous() and scale_b.stride(1) == 1
    assert recipe_a == recipe_b == F.ScalingType.RowWise
    assert settings.pop("bias").dtype == torch.bfloat16
    assert settings == {"output_dtype": torch.bfloat16, "use_fast_accum": True}


def test_gelu_goes_over_the_product(anywhere: None) -> None:
    """cuBLASLt's GELU is of bfloat16 weights alone; the meta device stands for CUDA."""
    layer = fp8.Fp8Linear(nn.Linear(64, 128).bfloat16())
    x = torch.randn(3, 64).bfloat16()
    wanted = F.gelu(layer(x), approximate="tanh")
    assert torch.equal(linear_gelu(x, layer.weight, layer.bias), wanted)
    layer, x = layer.to("meta"), x.to("meta")
    weight = layer.weight
    assert linear_gelu(x, weight, layer.bias).shape == (3, 128)


def test_which_layers_are_large() -> None:
    sizes = {
        (256, 1024): True, (1024, 1024): True, (32, 1024): False, (1024, 32): False,
        (1024, 1000): False, (1024, 1032): False, (264, 1024): False, (1024, 4096): True,
    }  # fmt: skip
    layers = nn.ModuleList(nn.Linear(*size, device="meta") for size in sizes)
    made = [fp8._of_large(layer) for layer in layers]
    assert [layer is not None for layer in made] == list(sizes.values())


def llamagen_generator() -> Any:
    torch.manual_seed(0)
    generator = DD2Generator(
        family="llamagen", head_width=64, head_depth=2, dimension=8, num_classes=10, width=64,
        layers=2, heads=2, hidden=128, grid=4, vocabulary=64, adapter_width=64,
    )  # fmt: skip
    generator.tokenizer = LlamaGenTokenizer(
        channels=32, multiples=(1, 2), latents=32, blocks=1, vocabulary=64, dimension=8
    )
    at_work(generator.tokenizer)
    return at_work(generator)


def converted(generator: Any) -> Sampler:
    """A sampler of a copy, which it converts."""
    own = copy.deepcopy(generator)
    own.tokenizer = copy.deepcopy(generator.tokenizer)
    return Sampler(own, dtype="fp8")


@pytest.mark.parametrize("family", ["var", "llamagen"])
def test_whole_networks(anywhere: None, family: str) -> None:
    generator = var_generator() if family == "var" else llamagen_generator()
    wanted = Sampler(generator)([1, 2, 3], seed=5)
    sampler = converted(generator)
    images = sampler([1, 2, 3], seed=5)
    assert 35 < psnr(images, wanted) < 90
    layers = [
        m for m in prepare(sampler.generator, fp8=True).modules() if isinstance(m, fp8.Fp8Linear)
    ]
    # VAR's blocks have qkv, proj, fc1 and fc2, and its head is too narrow; LlamaGen's have wqkv,
    # wo, w1 with w3, and w2, its adapter one, its head a condition, a modulation and four more.
    assert len(layers) == (2 * 4 if family == "var" else 2 * 4 + 1 + 6)
    assert all(layer.source[0].weight.dtype == torch.bfloat16 for layer in layers)
    alone = sampler([2], seed=5, start_index=1)
    assert psnr(alone, images[1:2]) > 50
    # Changes in place are followed, of what is joined too.
    changed = {"var": "blocks.0.ffn.fc1.weight", "llamagen": "layers.0.feed_forward.w1.weight"}
    for network in (generator, sampler.generator):
        network.backbone.get_parameter(changed[family]).mul_(4)
    again = Sampler(generator)([1, 2, 3], seed=5)
    followed = sampler([1, 2, 3], seed=5)
    assert psnr(followed, again) > max(35, psnr(images, again) + 3)


@pytest.mark.slow
def test_a_trained_network_keeps_its_images(anywhere: None, monkeypatch: Any) -> None:
    """The clothes, which are too narrow for it, with every product of 32 or more rounded."""
    monkeypatch.setattr(fp8, "_OUTPUTS_PAY", 32)
    monkeypatch.setattr(fp8, "_INPUTS_PAY", 32)
    labels = [i % 10 for i in range(40)]
    wanted = Sampler("fashion")(labels, seed=5)
    assert 35 < psnr(Sampler("fashion", dtype="fp8")(labels, seed=5), wanted) < 45


@pytest.mark.slow
@pytest.mark.parametrize("family", ["var", "llamagen"])
def test_compiled_as_one_graph(anywhere: None, family: str) -> None:
    sampler = converted(var_generator() if family == "var" else llamagen_generator())
    wanted = sampler([1, 2, 3], seed=5)
    sampler.compile(fullgraph=True, backend="aot_eager")
    # What is traced rounds at other places, and a product's input may then cross a tie.
    assert psnr(sampler([1, 2, 3], seed=5), wanted) > 45


def test_what_is_not_finite_comes_out() -> None:
    layer = fp8.Fp8Linear(nn.Linear(128, 128).bfloat16())
    x = torch.ones(3, 128).bfloat16()
    x[0, 5], x[1, 7] = torch.nan, torch.inf
    result = layer(x)
    assert result[:2].isnan().all() and result[2].isfinite().all()


def test_a_machine_without(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    assert fp8.missing(torch.device("cpu")) == "the networks are on cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fp8.missing(cuda) == "torch sees no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, wanted in (((8, 6), "8.6, and 8.9"), ((8, 9), None), ((12, 0), None)):
        found_here = lambda device, found=capability: found  # noqa: E731
        monkeypatch.setattr(torch.cuda, "get_device_capability", found_here)
        found = fp8.missing(cuda)
        assert found is None if wanted is None else wanted in str(found)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "AMD" in str(fp8.missing(cuda))
    monkeypatch.delattr(F, "scaled_mm")
    assert "has no scaled_mm" in str(fp8.missing(cuda))


def test_refusals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match='dtype: expected a floating .*"int8" or "fp8", got .fp16.'):
        Sampler("digits", dtype="fp16")
    generator = var_generator()
    wanted = 'dtype: expected networks on a GPU .* for "fp8", but the networks are on cpu'
    with pytest.raises(ValueError, match=wanted):
        Sampler(generator, dtype="fp8")
    assert generator.get_parameter("head.input.weight").dtype == torch.float32  # not converted
    monkeypatch.setattr(fp8, "missing", lambda device=None: None)
    with pytest.raises(ValueError, match="no layer of these networks is large enough"):
        Sampler(generator, dtype="fp8")
    monkeypatch.setattr(fp8, "_OUTPUTS_PAY", 64)
    monkeypatch.setattr(fp8, "_INPUTS_PAY", 64)
    sampler = Sampler(var_generator(), dtype="fp8")
    with pytest.raises(ValueError, match='model: expected a sampler of another dtype than "fp8"'):
        export(sampler, tmp_path / "x.pt2")
    with pytest.raises(ValueError, match="the networks are torch.float32 on cpu"):
        sampler.float()(0)
    with pytest.raises(ValueError, match="int8, fp8: expected one of them, got both"):
        prepare(generator, int8=True, fp8=True)
