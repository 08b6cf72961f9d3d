"""One set of tests for every backend of the images' noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ops.cases import COMPILERS, device_of, runnable_backends
from torch import Tensor

from dd2_fast.ops.image_normal import image_normal
from dd2_fast.ops.philox import philox

BACKENDS = pytest.mark.parametrize("backend", runnable_backends())
run = torch.ops.dd2_fast.image_normal

# (images, shape), each with the regime it covers
REGIMES = {
    "one_number": (1, (1,)),
    "scalar": (2, ()),
    "below_a_counter": (3, (3,)),
    "odd": (5, (5, 3)),
    "below_a_vector": (2, (31,)),
    "above_a_vector": (3, (2, 17)),
    "digits": (1, (16, 8)),
    "several_blocks": (9, (41, 7)),
    "threads": (3, (680, 32)),
}
SEEDS = (0, 5, -3, 2**63 - 1, -(2**63), (7 << 32) + 5)


def make_indices(images: int) -> Tensor:
    return torch.tensor([2**33 + 1, 0, -7, 2**62, 5])[torch.arange(images) % 5] + torch.arange(
        images
    )


def expected(seeds: Tensor, indices: Tensor, shape: tuple[int, ...], stream: int) -> Tensor:
    """The definition in NumPy and float64, from words that have known answers of their own."""
    count = math.prod(shape)
    counter = np.arange(-(-count // 4))
    rows = []
    for seed, index in zip(seeds.tolist(), indices.tolist(), strict=True):
        low, high = (np.full_like(counter, part % 2**32) for part in (index, index >> 32))
        key = (seed % 2**32, (seed >> 32) % 2**32)
        words = philox(counter, low, high, np.full_like(counter, stream), key)
        u = (np.stack(words, -1).reshape(-1, 2) + 0.5) / 2**32
        radius = np.sqrt(-2 * np.log(u[:, 0]))
        turns = 2 * np.pi * u[:, 1]
        normals = np.stack((radius * np.cos(turns), radius * np.sin(turns)), -1)
        rows.append(normals.reshape(-1)[:count])
    return torch.from_numpy(np.array(rows)).reshape(len(indices), *shape)


def assert_drawn(found: Tensor, wanted: Tensor) -> None:
    """float32 roundings of the same numbers: another only where float64's rounding, some 1e-15,
    lies across a tie, or is larger than the number."""
    assert found.dtype == torch.float32 and found.shape == wanted.shape
    found, rounded = found.cpu(), wanted.float()
    other = found != rounded
    assert other.sum() <= 1e-3 * found.numel()
    up, down = (torch.nextafter(rounded, torch.tensor(x)) for x in (torch.inf, -torch.inf))
    near = (found == up) | (found == down) | ((found - rounded).abs() <= 1e-6)
    assert near[other].all()


@BACKENDS
@pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES.keys())
def test_draws_the_definition(backend: str, regime: tuple[int, tuple[int, ...]]) -> None:
    images, shape = regime
    device, indices = device_of(backend), make_indices(images)
    for stream, seed in enumerate(SEEDS if images * math.prod(shape) < 10_000 else SEEDS[-1:]):
        seeds = torch.full_like(indices, seed)
        found = run(None, seed, indices.to(device), shape, stream, backend)
        assert_drawn(found, expected(seeds, indices, shape, stream))
        seeds += torch.arange(images)
        found = run(seeds.to(device), 0, indices.to(device), shape, stream, backend)
        assert_drawn(found, expected(seeds, indices, shape, stream))


@BACKENDS
def test_nothing_to_draw_and_strides(backend: str) -> None:
    indices = make_indices(6).to(device_of(backend))
    assert run(None, 1, indices[:0], (3, 2), 0, backend).shape == (0, 3, 2)
    assert run(indices[:0], 0, indices[:0], (3, 2), 0, backend).shape == (0, 3, 2)
    assert run(None, 1, indices, (3, 0), 0, backend).shape == (6, 3, 0)
    wanted = run(indices[::2].clone(), 0, indices[1::2].clone(), (3, 2), 4, backend)
    assert torch.equal(run(indices[::2], 0, indices[1::2], (3, 2), 4, backend), wanted)


@BACKENDS
def test_opcheck(backend: str) -> None:
    indices = make_indices(4).to(device_of(backend))
    torch.library.opcheck(run.default, (None, 7, indices, (3, 2), 1, backend))
    torch.library.opcheck(run.default, (indices + 1, 0, indices, (5,), 1, backend))


@BACKENDS
@COMPILERS
def test_compiles_without_graph_breaks(backend: str, compiler: str) -> None:
    indices = make_indices(4).to(device_of(backend))

    def shifted(seeds: Tensor, indices: Tensor) -> Tensor:
        return run(seeds, 0, 2 * indices, (3, 5), 1, backend) + 1

    compiled = torch.compile(shifted, fullgraph=True, backend=compiler)
    torch.testing.assert_close(compiled(indices, indices), shifted(indices, indices))


@COMPILERS
def test_compiles_with_a_number_as_seed(compiler: str) -> None:
    """Also when another number makes it symbolic."""
    compiled = torch.compile(
        lambda seed, indices: image_normal(seed, indices, (3, 2), stream=1) * 2,
        fullgraph=True,
        backend=compiler,
    )
    indices = make_indices(3)
    for seed in (3, 11, -4, 2**40):
        wanted = image_normal(seed, indices, (3, 2), stream=1) * 2
        assert torch.equal(compiled(seed, indices), wanted)


def test_a_seed_may_be_any_number() -> None:
    """Its low 64 bits count."""
    indices = make_indices(3)
    wanted = image_normal(-5, indices, (3, 2), stream=1)
    assert torch.equal(image_normal(2**64 - 5, indices, (3, 2), stream=1), wanted)
    assert torch.equal(image_normal(-5 - 2**70, indices, (3, 2), stream=1), wanted)
    assert not torch.equal(image_normal(5, indices, (3, 2), stream=1), wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_cuda_graph_reads_seeds_and_indices_anew() -> None:
    indices, seeds = make_indices(4).cuda(), torch.arange(4).cuda()
    image_normal(seeds, indices, (5, 3), stream=1)  # NVRTC compiles at the first use
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = image_normal(seeds, indices, (5, 3), stream=1)
    for _ in range(2):
        seeds += 1
        indices += 3
        graph.replay()
        assert_drawn(out, expected(seeds.cpu(), indices.cpu(), (5, 3), 1))


BAD = {
    "indices type": ({"indices": [0]}, TypeError, "indices: expected a torch.Tensor, got list"),
    "indices dtype": ({"indices": torch.zeros(4)}, TypeError, "indices: .*int64, got float32"),
    "indices shape": ({"indices": torch.zeros(4, 1).long()}, ValueError, r"indices: .*\[4, 1\]"),
    "seed dtype": ({"seed": torch.zeros(4)}, TypeError, "seed: .*int64, got float32"),
    "seed shape": ({"seed": torch.zeros(3).long()}, ValueError, r"seed: .*\[4\].*got \[3\]"),
    "device": ({"seed": torch.zeros(4, device="meta").long()}, ValueError, "seed: .*device cpu"),
}


@pytest.mark.parametrize("change,error,message", BAD.values(), ids=BAD.keys())
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"seed": 0, "indices": torch.zeros(4).long(), "shape": (2,), "stream": 0}
    with pytest.raises(error, match=message):
        image_normal(**{**arguments, **change})
