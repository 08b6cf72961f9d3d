"""The forward pass by its parts: products, the decoder's convolutions, and whole networks as they
are trained against prepared ones, each eager, compiled and replayed as CUDA graphs, and
generators' products in float8.

On a GPU generators and decoders have the shapes of VAR-d16 and LlamaGen-L, with random weights; on
a CPU, where ``bench_sampling`` times VAR-d16's, everything is tiny and nothing is replayed.

pytest bench/bench_forward.py --benchmark-only
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench_sampling import llamagen_l, psnr, ready, var_d16
from cases import size_in_bytes
from dd2_fast.models import fp8
from dd2_fast.models.families import FAMILIES
from dd2_fast.models.kernels import fold_upsampling
from dd2_fast.models.prepared import prepare
from dd2_fast.sampling.buckets import BucketedCall
from measure import DEVICES, Call, Problem, input_sets, relative_error

DEVICE = DEVICES[-1]
ON_GPU = DEVICE == "cuda"
DTYPE = torch.bfloat16 if ON_GPU else torch.float32

# VAR-d16's, by what they make: inputs, outputs.
PRODUCTS = {
    "qkv": (1024, 3072), "projection": (1024, 1024), "mlp_in": (1024, 4096),
    "mlp_out": (4096, 1024), "head_modulation": (1024, 14_336),
}  # fmt: skip
ROWS = (680, 5440, 43_520) if ON_GPU else (32,)  # of 1, 8 and 64 images

# The decoder's: channels and side, by where most of its time goes.
CONVOLUTIONS = {"160": (160, 256), "320": (320, 64), "640": (640, 16)}
IMAGES = 8 if ON_GPU else 1


def close(variant: str, result: Tensor, wanted: Tensor) -> dict[str, Any]:
    error = relative_error(result.float(), wanted)
    assert error < (1e-2 if ON_GPU else 1e-4), f"{variant}: {error:.1e}"
    return {"relative_error": error}


def products(name: str, rows: int) -> Problem:
    """A product with bias; ``mlp_in`` has GELU after it, or in it."""
    inputs, outputs = PRODUCTS[name]
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs, device=DEVICE, dtype=DTYPE) * inputs**-0.5
    bias = torch.randn(outputs, device=DEVICE, dtype=DTYPE)
    sets = [
        torch.randn(rows, inputs, device=DEVICE, dtype=DTYPE) for _ in range(input_sets(DEVICE))
    ]
    gelu: Callable[[Tensor], Tensor] = functools.partial(F.gelu, approximate="tanh")

    def make(variant: str) -> list[Call]:
        if variant == "linear_gelu":
            return [lambda x=x: gelu(F.linear(x, weight, bias)) for x in sets]
        if variant == "gelu_inside":  # tanh on CUDA, erf on a CPU
            inside = torch._addmm_activation
            return [lambda x=x: inside(bias, x, weight.T, use_gelu=True) for x in sets]
        return [lambda x=x: F.linear(x, weight, bias) for x in sets]

    def check(variant: str, call: Call) -> dict[str, Any]:
        wanted = F.linear(*(value.float() for value in (sets[0], weight, bias)))
        return close(variant, call(), gelu(wanted) if "gelu" in variant else wanted)

    return Problem(
        group=f"product {DEVICE} {name} {rows}",
        device=DEVICE,
        make=make,
        check=check,
        bytes=size_in_bytes(sets[0], weight) + rows * outputs * DTYPE.itemsize,
        flops=2 * rows * inputs * outputs,
        seconds=0.1,
    )


def convolutions(name: str, upsampled: bool) -> Problem:
    """A 3x3 convolution with bias, of what is upsampled first where that is wanted."""
    channels, side = CONVOLUTIONS[name]
    side = (side if ON_GPU else 8) // (2 if upsampled else 1)
    torch.manual_seed(0)
    shape = (IMAGES, channels, side, side)
    x = torch.randn(shape, device=DEVICE, dtype=DTYPE)
    weight = torch.randn(channels, channels, 3, 3, device=DEVICE, dtype=DTYPE)
    weight *= (9 * channels) ** -0.5
    bias = torch.randn(channels, device=DEVICE, dtype=DTYPE)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if upsampled:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        return F.conv2d(x, weight, bias, padding=1)

    def make(variant: str) -> list[Call]:
        last = {"memory_format": torch.channels_last}
        if variant == "folded":
            folded = fold_upsampling(weight).contiguous(**last)
            own = x.contiguous(**last)
            return [lambda: F.conv_transpose2d(own, folded, bias, stride=2, padding=1)]
        own, taps, offsets = x, weight, bias
        if variant == "padded":  # to whole tiles of 64 channels
            more = -channels % 64
            own = F.pad(x, (0, 0, 0, 0, 0, more))
            taps, offsets = F.pad(weight, (0, 0, 0, 0, 0, more, 0, more)), F.pad(bias, (0, more))
        if variant != "channels_first":
            own, taps = own.contiguous(**last), taps.contiguous(**last)
        return [lambda: convolve(own, taps, offsets)]

    def check(variant: str, call: Call) -> dict[str, Any]:
        wanted = convolve(*(value.float() for value in (x, weight, bias)))
        return close(variant, call()[:, :channels], wanted)

    area = (2 * side if upsampled else side) ** 2
    return Problem(
        group=f"convolution {DEVICE} {name}{' upsampled' if upsampled else ''}",
        device=DEVICE,
        make=make,
        check=check,
        bytes=size_in_bytes(x, weight) + IMAGES * channels * area * DTYPE.itemsize,
        flops=2 * IMAGES * 9 * channels**2 * area * (4 / 9 if upsampled else 1),
        info={"images": IMAGES},
        seconds=0.1,
    )


def tiny_var() -> tuple[Any, Any]:
    torch.manual_seed(0)
    return ready(FAMILIES["var"].random())


@functools.cache
def models(name: str) -> Any:
    """A generator with its tokenizer, in the GPU's dtype."""
    made = {"tiny_var": tiny_var, "var_d16": var_d16, "llamagen_l": llamagen_l}
    generator, _ = made[name]()
    generator.teacher = None
    for part in (generator, generator.tokenizer):
        part.to(DEVICE, DTYPE)
    return generator


def forward(part: str, name: str, images: int) -> Problem:
    """``part``: generator (from noise to embeddings) or decoder (from those to pixels)."""
    generator = models(name)
    tokenizer = generator.tokenizer
    torch.manual_seed(1)
    tokens, dim = generator.num_tokens, tokenizer.codebook.shape[1]
    noise = torch.randn(images, tokens, dim, device=DEVICE).to(DTYPE)
    labels = torch.arange(images, device=DEVICE) % generator.num_classes
    inputs = (noise, labels) if part == "generator" else (noise,)

    def function(network: nn.Module) -> Callable[..., Tensor]:
        return network if part == "generator" else network.decode  # type: ignore[return-value]

    def make(variant: str) -> list[Call]:
        network = generator if part == "generator" else tokenizer
        if "fp8" in variant:
            network = prepare(network, fp8=True)
        call = function(prepare(network) if "prepared" in variant else network)
        if "compiled" in variant:
            call = torch.compile(call, dynamic=False)
        if "graphs" in variant:
            call = BucketedCall(call, images, graphs=True)
        return [torch.inference_mode()(lambda: call(*inputs))]

    @functools.cache
    def wanted() -> tuple[Tensor, float]:
        network = generator if part == "generator" else tokenizer
        exact = function(copy.deepcopy(network).float())
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            whole = exact(noise.float(), *inputs[1:])
        return whole, counter.get_total_flops()

    def check(variant: str, call: Call) -> dict[str, Any]:
        exact, flops = wanted()
        result = call().float()
        if part == "decoder":
            quality = psnr(result, exact)
            assert quality > 35, f"{variant}: {quality:.1f} dB"
            return {"psnr": quality, "flops": flops}
        error = relative_error(result, exact)
        assert error < 5e-2, f"{variant}: {error:.1e}"
        return {"relative_error": error, "flops": flops}

    return Problem(
        group=f"forward {DEVICE} {name} {part} {images}",
        device=DEVICE,
        make=make,
        check=check,
        seconds=0.5,
        info={"images": images},
    )


# What a name of a size stands for; on a CPU tiny ones.
TINY = "" if ON_GPU else "tiny_"
PRODUCT_SIZES = {f"{TINY}{name}_{rows}": (name, rows) for rows in ROWS for name in PRODUCTS}
CONVOLUTION_SIZES = {
    f"{TINY}{name}{'_upsampled' if upsampled else ''}": (name, upsampled)
    for name in CONVOLUTIONS
    for upsampled in (False, True)
}
FORWARD_SIZES = {
    f"{name}_{part}_{images}": (part, name, images)
    for name in (("var_d16", "llamagen_l") if ON_GPU else ("tiny_var",))
    for images in (1, 64)
    for part in ("generator", "decoder")
}
GELU = ("linear_gelu", "gelu_inside") if ON_GPU else ("linear_gelu",)
PRODUCT_CASES = [
    (size, DEVICE, variant)
    for size in PRODUCT_SIZES
    for variant in ("linear", *(GELU if "mlp_in" in size else ()))
]
CONVOLUTION_CASES = [
    (size, DEVICE, variant)
    for size, (_, upsampled) in CONVOLUTION_SIZES.items()
    for variant in ("channels_first", "channels_last", "folded" if upsampled else "padded")
]
# What counts first, as a GPU's time may end: the modules' best against the prepared ones'.
GRAPHS = (
    "trained_compiled_graphs", "prepared_graphs", "prepared_compiled_graphs", "trained_graphs",
)  # fmt: skip
FP8 = ("fp8_graphs", "fp8_compiled_graphs") if fp8.missing() is None else ()  # at many rows


def ways(part: str, images: int) -> tuple[str, ...]:
    if images == 1:
        return (*(GRAPHS if ON_GPU else ()), "trained", "prepared")
    return (*GRAPHS, *(FP8 if part == "generator" else ())) if ON_GPU else ()


FORWARD_CASES = [
    (size, DEVICE, way)
    for size, (part, _, images) in FORWARD_SIZES.items()
    for way in ways(part, images)
]


@pytest.mark.parametrize(("size", "device", "variant"), FORWARD_CASES)
def bench_forward(race: Any, size: str, device: str, variant: str) -> None:
    race(lambda: forward(*FORWARD_SIZES[size]))


@pytest.mark.parametrize(("size", "device", "variant"), PRODUCT_CASES)
@torch.inference_mode()
def bench_product(race: Any, size: str, device: str, variant: str) -> None:
    race(lambda: products(*PRODUCT_SIZES[size]))


@pytest.mark.parametrize(("size", "device", "variant"), CONVOLUTION_CASES)
@torch.inference_mode()
def bench_convolution(race: Any, size: str, device: str, variant: str) -> None:
    race(lambda: convolutions(*CONVOLUTION_SIZES[size]))
