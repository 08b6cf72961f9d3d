"""One set of tests for every backend of ``nearest_code``."""

from __future__ import annotations

import pytest
import torch
from ops.cases import COMPILERS, device_of, pairwise_with_backends, runnable_backends, unaligned
from torch import Tensor

from dd2_fast.ops import nearest_code

BACKENDS = pytest.mark.parametrize("backend", runnable_backends())

# (rows, vocabulary, dim), each with the regime it covers
REGIMES = {
    "one": (1, 1, 1),
    "few_tokens": (3, 1000, 8),
    "ragged": (29, 333, 5),
    "one_dimension": (40, 77, 1),
    "wide": (13, 129, 70),
    "many_tokens": (700, 65, 8),
    "var": (130, 4096, 32),
    "llamagen": (64, 16384, 8),
}


def make_inputs(rows: int, vocabulary: int, dim: int, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + vocabulary + dim)
    x = torch.randn(rows, dim, generator=generator) + offset
    return x, torch.randn(vocabulary, dim, generator=generator) + offset


def assert_nearest(found: Tensor, x: Tensor, codebook: Tensor) -> None:
    """The squared distance found is the smallest to within the rounding of its terms: each of
    |c|^2 / 2 and x·c sums dim products, so errs by dim float32 roundings of |x|^2 + |c|^2."""
    found, x, codebook = found.cpu(), x.double(), codebook.double()
    smallest = torch.cdist(x, codebook).square().amin(-1)
    chosen = codebook[found]
    distance = (x - chosen).square().sum(-1)
    scale = x.square().sum(-1) + codebook.square().sum(-1).amax()
    assert (distance - smallest <= x.shape[-1] * 2.0**-23 * scale).all()


def duplicated(dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every code several times over, tokens close to one, and the first index of that code."""
    generator = torch.Generator().manual_seed(dim)
    distinct = torch.randn(40, dim, generator=generator)
    codebook = distinct[torch.randint(40, (1000,), generator=generator)]
    x = codebook[torch.randint(1000, (90,), generator=generator)]
    first = (codebook[None] == x[:, None]).all(-1).int().argmax(-1)
    return x + 1e-3 * torch.randn(90, dim, generator=generator), codebook, first


def invalid() -> tuple[Tensor, Tensor, Tensor]:
    x, codebook = make_inputs(20, 50, 8)
    wanted = torch.cdist(x, codebook[5:]).argmin(-1) + 5
    codebook[0, 3], codebook[1, 0], codebook[2] = torch.nan, torch.inf, -torch.inf
    codebook[3:5] = 1e4
    x[4, 7], x[9, 0], x[19, 2] = torch.nan, torch.inf, -torch.inf
    x[7], x[8], x[17] = 1e30, -1e20, torch.finfo(torch.float32).max  # the square overflows
    wanted[[4, 7, 8, 9, 17, 19]] = -1
    return x, codebook, wanted


@pairwise_with_backends(regime=REGIMES, offset=[0.0, 30.0])
def test_finds_the_smallest_distance(backend: str, regime: tuple, offset: float) -> None:
    x, codebook = make_inputs(*regime, offset)
    device = device_of(backend)
    found = nearest_code(x.to(device), codebook.to(device), backend=backend)
    assert found.dtype == torch.int64 and found.shape == x.shape[:1]
    assert_nearest(found, x, codebook)


@pytest.mark.parametrize("backend", runnable_backends(("cuda", "cupy")))
@pytest.mark.parametrize("dim", [3, 32, 40])
def test_tokens_that_fill_every_multiprocessor(backend: str, dim: int) -> None:
    """Blocks of 128 tokens; smaller calls take other kernels."""
    x, codebook = make_inputs(40_000, 200, dim)
    assert_nearest(nearest_code(x.cuda(), codebook.cuda(), backend=backend), x, codebook)


@BACKENDS
@pytest.mark.parametrize("dim", [3, 8, 32, 40])
def test_equal_codes_give_the_first(backend: str, dim: int) -> None:
    x, codebook, wanted = duplicated(dim)
    device = device_of(backend)
    found = nearest_code(x.to(device), codebook.to(device), backend=backend)
    assert torch.equal(found.cpu(), wanted)


@BACKENDS
@pytest.mark.parametrize("dim", [8, 32, 64])
def test_unaligned_codebook(backend: str, dim: int) -> None:
    x, codebook = (value.to(device_of(backend)) for value in make_inputs(40, 77, dim))
    wanted = nearest_code(x, codebook, backend=backend)
    assert torch.equal(nearest_code(x, unaligned(codebook), backend=backend), wanted)


@BACKENDS
def test_invalid_tokens_and_codes(backend: str) -> None:
    x, codebook, wanted = (value.to(device_of(backend)) for value in invalid())
    assert torch.equal(nearest_code(x, codebook, backend=backend), wanted)
    lost = nearest_code(x, torch.full_like(codebook, torch.nan), backend=backend)
    assert (lost == -1).all()


@BACKENDS
def test_shapes_strides_and_dtypes(backend: str) -> None:
    x, codebook = (value.to(device_of(backend)) for value in make_inputs(24, 60, 6))
    wanted = nearest_code(x, codebook, backend=backend)
    shaped = nearest_code(x.reshape(2, 3, 4, 6), codebook, backend=backend)
    assert torch.equal(shaped, wanted.reshape(2, 3, 4))
    assert nearest_code(x[0], codebook, backend=backend).item() == wanted[0]
    strided = nearest_code(x.T.contiguous().T, codebook.T.contiguous().T, backend=backend)
    assert torch.equal(strided, wanted)
    assert nearest_code(x[:0], codebook, backend=backend).shape == (0,)
    assert nearest_code(x.reshape(2, 12, 6)[:, :0], codebook, backend=backend).shape == (2, 0)
    half = nearest_code(x.bfloat16(), codebook.half(), backend=backend)
    exact = nearest_code(x.bfloat16().float(), codebook.half().float(), backend=backend)
    assert torch.equal(half, exact)
    assert torch.equal(nearest_code(x.clone().requires_grad_(), codebook, backend=backend), wanted)


@BACKENDS
def test_opcheck(backend: str) -> None:
    x, codebook = (value.to(device_of(backend)) for value in make_inputs(12, 30, 4))
    torch.library.opcheck(torch.ops.dd2_fast.nearest_code.default, (x, codebook, backend))


@BACKENDS
@COMPILERS
def test_compiles_without_graph_breaks(backend: str, compiler: str) -> None:
    x, codebook = (value.to(device_of(backend)) for value in make_inputs(12, 30, 4))

    def snapped(x: Tensor) -> Tensor:
        return codebook[nearest_code(2 * x, codebook, backend=backend)] + x

    compiled = torch.compile(snapped, fullgraph=True, backend=compiler)
    torch.testing.assert_close(compiled(x), snapped(x))


def test_float64_stays_exact_by_default() -> None:
    codebook = torch.tensor([[1.0 + 1e-12], [1.0]], dtype=torch.float64)
    assert nearest_code(torch.ones(1, 1), codebook).item() == 1
    with pytest.raises(RuntimeError, match="'cpu' cannot run nearest_code.*float64"):
        nearest_code(torch.ones(1, 1), codebook, backend="cpu")


BAD = {
    "x type": ({"x": [0.0]}, TypeError, "x: expected a torch.Tensor, got list"),
    "x dtype": ({"x": torch.zeros(4, 3, dtype=torch.int64)}, TypeError, "x: .*got int64"),
    "x dim": ({"x": torch.zeros(4, 5)}, ValueError, r"x: expected .*C = 3.*got \[4, 5\]"),
    "codebook": ({"codebook": torch.zeros(3)}, ValueError, r"codebook: expected .*got \[3\]"),
    "empty": ({"codebook": torch.zeros(0, 3)}, ValueError, r"codebook: .*V >= 1.*got \[0, 3\]"),
    "device": ({"codebook": torch.zeros(9, 3, device="meta")}, ValueError, "codebook.*device cpu"),
    "backend": ({"backend": "metal"}, ValueError, "backend.*'torch', got 'metal'"),
}


@pytest.mark.parametrize("change,error,message", BAD.values(), ids=BAD.keys())
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"x": torch.zeros(4, 3), "codebook": torch.zeros(9, 3)}
    with pytest.raises(error, match=message):
        nearest_code(**{**arguments, **change})
