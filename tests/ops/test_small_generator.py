"""A small generator and its decoder in one call: the definition against the models' own modules in
float64, and the kernels against the definition."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from ops.cases import device_of, runnable_backends
from torch import Tensor

from dd2_fast.checkpoints import load_bundle
from dd2_fast.models import DD2Generator, VQTokenizer
from dd2_fast.models.small import packed_decoder, packed_generator
from dd2_fast.ops import default_backend, registry
from dd2_fast.ops.philox import image_normal
from dd2_fast.ops.small_generator import small_generator
from dd2_fast.ops.small_generator.native import Drawn
from dd2_fast.ops.small_network import GeneratorSizes
from dd2_fast.sampling import resolve_path

BACKENDS = pytest.mark.parametrize("backend", runnable_backends(("cpu", "cuda", "cupy")))


@dataclasses.dataclass(frozen=True)
class Regime:
    grid: int
    dim: int
    width: int
    heads: int
    layers: int
    head_width: int
    head_depth: int
    decoder_width: int


REGIMES = {
    "one_token": Regime(1, 1, 16, 1, 1, 16, 1, 16),
    "below_a_panel": Regime(2, 3, 32, 2, 2, 48, 2, 16),
    "digits": Regime(4, 8, 64, 4, 3, 96, 2, 48),
    "ragged": Regime(3, 17, 48, 1, 1, 80, 3, 32),
    "several_panels": Regime(6, 5, 96, 3, 2, 112, 1, 64),
    "largest": Regime(8, 16, 256, 8, 1, 256, 1, 256),
}
CASES = pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES.keys())
CLASSES, IMAGES = 5, 3


def networks(regime: Regime) -> tuple[DD2Generator, VQTokenizer]:
    """In float64, of a seed, with weights that keep every part in play."""
    with torch.random.fork_rng():
        torch.manual_seed(regime.grid)
        generator = DD2Generator(
            num_tokens=regime.grid**2,
            dimension=regime.dim,
            num_classes=CLASSES,
            width=regime.width,
            layers=regime.layers,
            heads=regime.heads,
            head_width=regime.head_width,
            head_depth=regime.head_depth,
        )
        tokenizer = VQTokenizer(
            image_size=2 * regime.grid, vocabulary=4, dimension=regime.dim,
            width=regime.decoder_width,
        )  # fmt: skip
        for network in (generator, tokenizer):
            for tensor in network.parameters():
                fan = math.prod(tensor.shape[1:]) if tensor.ndim > 1 else 25
                torch.nn.init.normal_(tensor, std=fan**-0.5)
        tokenizer.shift.normal_()
        tokenizer.scale.normal_()
    return generator.double(), tokenizer.double()


def inputs(regime: Regime, images: int = IMAGES) -> tuple[Tensor, Tensor]:
    index = torch.arange(images)
    noise = image_normal(3, index, (regime.grid**2, regime.dim), stream=0)
    return noise, (2 * index) % (CLASSES + 1)


def packed(regime: Regime, device: str = "cpu") -> tuple[Tensor, Tensor, GeneratorSizes]:
    """float64 weights, and the sizes."""
    generator, tokenizer = (network.to(device) for network in networks(regime))
    of_generator, decoder = packed_generator(generator), packed_decoder(tokenizer)
    assert of_generator is not None and decoder is not None
    sizes = of_generator.sizes._replace(decoder_width=decoder.sizes.decoder_width)
    return of_generator.weights, decoder.weights, sizes


@CASES
def test_the_definition_is_the_modules(regime: Regime) -> None:
    generator, tokenizer = networks(regime)
    noise, labels = inputs(regime)
    with torch.no_grad():
        embeddings = generator(noise.double(), labels)
        images = tokenizer.decode(embeddings)
    found = small_generator(noise.double(), labels, *packed(regime), backend="torch")
    torch.testing.assert_close(found, (embeddings, images), rtol=1e-12, atol=1e-12)
    assert 0.1 < images.mean() < 0.9 and images.std() > 0.01  # not clamped away


@BACKENDS
@CASES
def test_kernels_equal_float64(backend: str, regime: Regime) -> None:
    """Within a few times the error of the definition in single precision, which rounds as often."""
    device = device_of(backend)
    noise, labels = inputs(regime)
    wide = packed(regime)
    weights, decoder, sizes = wide[0].float(), wide[1].float(), wide[2]
    exact = small_generator(noise.double(), labels, *wide, backend="torch")
    same = small_generator(noise, labels, weights, decoder, sizes, backend="torch")
    found = small_generator(
        noise.to(device), labels.to(device), weights.to(device), decoder.to(device), sizes,
        backend=backend,
    )  # fmt: skip
    for value, eager, wanted in zip(found, same, exact, strict=True):
        assert value.shape == wanted.shape and value.dtype == torch.float32
        allowed = 4 * (eager - wanted).abs().max() + 1e-6 * wanted.abs().max()
        assert (value.cpu() - wanted).abs().max() <= allowed


@BACKENDS
def test_parts_alone_batches_and_strides(backend: str) -> None:
    """An image depends on its own noise and label, to the last bit."""
    regime, device = REGIMES["below_a_panel"], device_of(backend)
    noise, labels = (t.to(device) for t in inputs(regime, 13))
    weights, decoder, sizes = packed(regime, device)
    weights, decoder = weights.float(), decoder.float()
    embeddings, images = small_generator(noise, labels, weights, decoder, sizes, backend=backend)
    alone, none = small_generator(noise, labels, weights, None, sizes, backend=backend)
    assert torch.equal(alone, embeddings) and none.shape == (13, 3, 0, 0)
    given, decoded = small_generator(embeddings, None, None, decoder, sizes, backend=backend)
    assert torch.equal(given, embeddings) and torch.equal(decoded, images)
    strided = noise.flip(0).repeat_interleave(2, 0)[::2].flip(0).transpose(1, 2).contiguous()
    some = small_generator(
        strided.transpose(1, 2)[4:9], labels[4:9], weights, decoder, sizes, backend=backend
    )
    assert torch.equal(some[0], embeddings[4:9]) and torch.equal(some[1], images[4:9])
    empty = small_generator(noise[:0], labels[:0], weights, decoder, sizes, backend=backend)
    assert empty[0].shape == (0, 4, 3) and empty[1].shape == (0, 3, 4, 4)


@BACKENDS
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_what_is_not_finite_is_nan(backend: str, bad: float) -> None:
    regime, device = REGIMES["below_a_panel"], device_of(backend)
    noise, labels = (t.to(device) for t in inputs(regime))
    weights, decoder, sizes = packed(regime, device)
    noise[1, -1, 0] = bad
    _, images = small_generator(
        noise, labels, weights.float(), decoder.float(), sizes, backend=backend
    )
    assert images[1].isnan().any() and images[::2].isfinite().all()


@pytest.mark.parametrize("backend", runnable_backends(("cpu",)))
def test_threads_change_nothing(backend: str) -> None:
    regime, threads = REGIMES["digits"], torch.get_num_threads()
    weights, decoder, sizes = packed(regime)
    call = (*inputs(regime, 7), weights.float(), decoder.float(), sizes)
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            results.append(small_generator(*call, backend=backend))
        finally:
            torch.set_num_threads(threads)
    assert all(map(torch.equal, *results))


@BACKENDS
def test_the_kernel_draws_the_noise(backend: str) -> None:
    """As the sampler's own, to the last bit."""
    regime, device = REGIMES["ragged"], device_of(backend)
    weights, decoder, sizes = packed(regime, device)
    weights, decoder = weights.float(), decoder.float()
    indices = torch.tensor([5, 0, 2**40], device=device)
    labels = torch.tensor([1, 5, 0], device=device)
    shape = regime.grid**2, regime.dim
    with default_backend(backend):
        noise = image_normal(-7, indices, shape, stream=0)
    wanted = small_generator(noise, labels, weights, decoder, sizes, backend=backend)
    module = registry.resolve("small_generator", backend, weights.device, weights.dtype)
    launch = module.launcher(weights.device)
    # From where the caller has them.
    found = Drawn(launch, weights, None, sizes, *shape)(-7, indices.cpu(), labels.cpu())
    assert torch.equal(found, wanted[0])
    found = Drawn(launch, weights, decoder, sizes, *shape)(-7, indices, labels)
    assert torch.equal(found, wanted[1])


@BACKENDS
@pytest.mark.parametrize("count", [1, 3])
def test_the_bundled_digits(backend: str, count: int) -> None:
    """Within the budget of the sampler's own test: some 40 roundings a layer in 20 layers."""
    digits, device = load_bundle(resolve_path("digits")), device_of(backend)
    parts = packed_generator(digits.generator), packed_decoder(digits.tokenizer)
    assert parts[0] is not None and parts[1] is not None
    weights, decoder = (part.weights for part in parts)
    sizes = parts[0].sizes._replace(decoder_width=parts[1].sizes.decoder_width)
    noise, labels = image_normal(0, torch.arange(count), (16, 8), stream=0), torch.arange(count) + 3
    exact = small_generator(
        noise.double(), labels, weights.double(), decoder.double(), sizes, backend="torch"
    )
    found = small_generator(
        *(t.to(device) for t in (noise, labels, weights, decoder)), sizes, backend=backend
    )
    for value, wanted, allowed in zip(found, exact, (2e-5, 6e-6), strict=True):
        assert (value.cpu() - wanted).abs().max() < allowed


@BACKENDS
def test_opcheck(backend: str) -> None:
    regime, device = REGIMES["one_token"], device_of(backend)
    noise, labels = (t.to(device) for t in inputs(regime))
    weights, decoder, sizes = packed(regime, device)
    operator = torch.ops.dd2_fast.small_generator.default
    torch.library.opcheck(
        operator, (noise, labels, weights.float(), decoder.float(), list(sizes), backend)
    )


BAD = {
    "x shape": ({"x": torch.zeros(3, 2)}, ValueError, r"x: expected shape .*\[3, 2\]"),
    "tokens": ({"x": torch.zeros(3, 65, 3)}, ValueError, "x: .*64.*65"),
    "square": ({"x": torch.zeros(3, 5, 3), "weights": None}, ValueError, "x: expected a square"),
    "labels": ({"labels": None}, TypeError, "labels: .*got NoneType"),
    "labels shape": ({"labels": torch.zeros(2).long()}, ValueError, r"labels: .*\[3\].*\[2\]"),
    "weights": ({"weights": torch.zeros(7)}, ValueError, r"weights: .*got \[7\]"),
    "decoder dtype": ({"decoder": torch.zeros(7).double()}, TypeError, "decoder: .*float64"),
    "width": ({"sizes": GeneratorSizes(6, 24, 1, 1, 48, 2, 16)}, ValueError, "width .*got 24"),
    "wide": ({"sizes": GeneratorSizes(6, 272, 1, 1, 48, 2, 16)}, ValueError, "width .*got 272"),
    "heads": ({"sizes": GeneratorSizes(6, 32, 2, 4, 48, 2, 16)}, ValueError, "heads .*got 4"),
}


@pytest.mark.parametrize("change,error,message", BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_is_refused(change: dict, error: type[Exception], message: str) -> None:
    regime = REGIMES["below_a_panel"]
    noise, labels = inputs(regime)
    weights, decoder, sizes = packed(regime)
    call = {"x": noise, "labels": labels, "weights": weights.float(), "decoder": decoder.float()}
    with pytest.raises(error, match=message):
        small_generator(**{**call, "sizes": sizes, **change})
