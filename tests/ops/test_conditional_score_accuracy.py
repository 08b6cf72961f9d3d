"""Inputs on which float32 or tensor cores lose digits, against the float64 reference. Rows have
draws enough that the GPU backends take their tensor cores where the filters leave many codes."""

from __future__ import annotations

import mmap
from dataclasses import replace

import pytest
import torch
from ops.cases import (
    Case,
    make_case,
    pairwise_with_backends,
    relative_error,
    runnable_backends,
    unaligned,
)
from torch import Tensor

from dd2_fast.ops import conditional_score

BACKENDS = pytest.mark.parametrize(
    "backend", [param for param in runnable_backends() if param.values != ("torch",)]
)
DRAWS = 80


def x0_and_gradient(arguments: dict, direction: Tensor) -> tuple[Tensor, Tensor]:
    x_t = arguments.pop("x_t").requires_grad_()
    x0 = conditional_score(x_t, **arguments, prediction="x0")
    gradient = torch.autograd.grad(x0, x_t, direction.to(x_t))[0]
    return x0.detach().cpu(), gradient.cpu()


def assert_exact(
    case: Case, backend: str, dtype: torch.dtype, error: float, size_of_direction: float = 1.0
) -> None:
    """x0 within ``error``; the gradient within 1e-3 beyond four times what eager float32 loses, as
    tensor cores' products are of 22 bits: J u of codes much closer than the noise is a difference
    of nearly equal sums. Where one code has all the weight it is within 1e-12 of 0."""
    direction = torch.randn(case.x_t.shape) * size_of_direction
    exact, exact_gradient = x0_and_gradient(case.arguments("float64"), direction)
    _, eager_gradient = x0_and_gradient(case.arguments("torch", dtype), direction)
    x0, gradient = x0_and_gradient(case.arguments(backend, dtype), direction)
    assert relative_error(x0, exact) < error
    allowed = 1e-3 + 4 * relative_error(eager_gradient, exact_gradient)
    off, size = (gradient.double() - exact_gradient).norm(), exact_gradient.norm()
    assert off < allowed * size + 1e-12 * direction.norm()


def clustered_case(
    dim: int, spread: float, t: tuple[float, float], centre: float = 0.0,
    dtype: torch.dtype = torch.float32, top_k: int = 0,
) -> Case:  # fmt: skip
    """Codes in clusters of 16 whose members are ``spread`` apart, around ``centre``."""
    case = make_case(1, 512, dim, DRAWS, guided=False, t=t, dtype=dtype, top_k=top_k)
    centres = torch.randn(32, dim).repeat_interleave(16, 0) + centre
    codebook = (centres + spread * torch.randn(512, dim)).float().double()
    clean = codebook[torch.randint(512, (1, DRAWS))]
    noise_level = case.t[..., None]
    x_t = (1 - noise_level) * clean + noise_level * torch.randn(1, DRAWS, dim)
    return replace(case, x_t=x_t.float().double(), codebook=codebook)


@pairwise_with_backends(
    spread=[0.002, 0.01, 0.03],
    dim=[8, 32, 64],
    t={"least": (0.02, 0.02), "little": (0.02, 0.05), "some": (0.05, 0.3), "much": (0.3, 1.0)},
)
def test_clustered_codes(backend: str, dim: int, spread: float, t: tuple[float, float]) -> None:
    """Where the expanded distance cancels most."""
    assert_exact(clustered_case(dim, spread, t), backend, torch.float32, 5e-5)


@pairwise_with_backends(
    dim=[6, 32, 40],  # one pass of 8 dimensions, of 32, two of 32
    dtype=[torch.float32, torch.bfloat16, torch.float16],
    top_k=[0, 400],
)
def test_little_noise_takes_direct_differences(
    backend: str, dim: int, dtype: torch.dtype, top_k: int
) -> None:
    """What they keep, the expanded distance has lost: codes as far apart as the noise."""
    case = clustered_case(dim, 0.003, (0.002, 0.0199), dtype=dtype, top_k=top_k)
    assert_exact(case, backend, dtype, 1e-4 if backend == "torch" else 2e-6)


def error_of_x0(case: Case, backend: str) -> float:
    exact = conditional_score(**case.arguments("float64"), prediction="x0")
    return relative_error(conditional_score(**case.arguments(backend), prediction="x0"), exact)


@BACKENDS
@pytest.mark.parametrize("centre", [3.0, 20.0, 300.0])
def test_codes_far_from_zero(backend: str, centre: float) -> None:
    assert error_of_x0(clustered_case(32, 0.01, (0.02, 0.1), centre), backend) < 5e-5


@pairwise_with_backends(
    dim=[8, 32, 64], scale=[1.0, 10.0, 100.0, 300.0, 1000.0], t=[1.0, 0.999, 0.95, 0.5]
)
def test_far_tokens_of_many_draws(backend: str, dim: int, scale: float, t: float) -> None:
    """Budget: 2^-22 |x| |c| (1-t) / t^2 of the exponent: tensor cores' products are of 22 bits."""
    case = make_case(1, 256, dim, DRAWS, t=(t, t))
    case = replace(case, x_t=(scale * torch.randn(1, DRAWS, dim)).double())
    assert error_of_x0(case, backend) < 1e-5 + 2.0**-20 * dim * scale * (1 - t) / t**2


@pairwise_with_backends(dim=[8, 33, 64], offset=[100.0, 1000.0], t=[1.0, 0.9, 0.5, 0.05])
def test_codebooks_whose_products_would_be_rounded(
    backend: str, dim: int, offset: float, t: float
) -> None:
    """Budget: as of test_large_values' far codebooks, whose sums are of the codes themselves; the
    sums of tensor cores are of what codes are beside their centre."""
    case = make_case(1, 256, dim, DRAWS, t=(t, t))
    codebook = (offset + torch.randn(256, dim)).double()
    x_t = (1 - t) * codebook[:DRAWS] + t * torch.randn(DRAWS, dim)
    case = replace(case, x_t=x_t.float().double()[None], codebook=codebook.float().double())
    exact = conditional_score(**case.arguments("float64"), prediction="x0")
    x0 = conditional_score(**case.arguments(backend), prediction="x0").cpu()
    error = (x0 - exact).norm(dim=-1).max() / dim**0.5
    roundings = 4 if backend in ("cuda", "cupy") else 16
    assert error < 1e-5 + roundings * 2.0**-24 * offset


@BACKENDS
def test_long_sums_lose_nothing(backend: str) -> None:
    """Equal weights of codes with one sign: what every addition cuts off adds up."""
    case = make_case(1, 8192, 8, DRAWS, guided=False, t=(0.9, 0.9))
    codebook = case.codebook.float().double() + 4
    case = replace(case, logits=0 * case.logits, codebook=codebook)
    assert error_of_x0(case, backend) < 1e-5


@BACKENDS
@pytest.mark.parametrize("size", [1e-12, 1e-4, 1e3])
def test_any_size_of_codes_and_direction(backend: str, size: float) -> None:
    """Halves reach from 6e-8 to 65504: what they hold is scaled."""
    case = make_case(1, 150, 9, DRAWS, t=(0.5, 1.0))
    case = replace(case, codebook=(case.codebook * size).float().double())
    assert_exact(case, backend, torch.float32, 2e-5, 1 / size)


@BACKENDS
def test_logits_far_from_zero(backend: str) -> None:
    case = make_case(2, 300, 8, DRAWS, guided=False)
    logits = (case.logits + 2e4).float().double()
    logits[1] -= 4e4
    assert error_of_x0(replace(case, logits=logits), backend) < 2e-5


@BACKENDS
@pytest.mark.parametrize("top_k", [0, 50])
def test_tiny_noise_in_a_block_of_others(backend: str, top_k: int) -> None:
    case = make_case(1, 300, 12, DRAWS, top_k=top_k)
    for i, t in enumerate((0.0199, 1e-3, 1e-8, 1e-25, 1e-45)):
        case.t[0, 7 * i] = t
    case = replace(case, t=case.t.float().double())
    direction = torch.randn(case.x_t.shape)
    exact, _ = x0_and_gradient(case.arguments("float64"), direction)
    x0, gradient = x0_and_gradient(case.arguments(backend), direction)
    assert relative_error(x0, exact) < 2e-5
    assert relative_error(x0[:, :35:7], exact[:, :35:7]) < 2e-5
    assert gradient.isfinite().all()


@BACKENDS
@pytest.mark.parametrize("draws", [2, DRAWS])
@pytest.mark.parametrize("name", ["logits", "uncond_logits", "codebook", "x_t"])
def test_one_unaligned_tensor(backend: str, name: str, draws: int) -> None:
    case = make_case(2, 128, 8, draws)
    exact = conditional_score(**case.arguments("float64"), prediction="x0")
    arguments = case.arguments(backend)
    arguments[name] = unaligned(arguments[name])
    x0 = conditional_score(**arguments, prediction="x0")
    assert relative_error(x0, exact) < 2e-5


@BACKENDS
def test_rows_that_begin_beyond_64_gib(backend: str) -> None:
    """More 16-byte loads from the first row than 32 bits count."""
    stride = 2**34 + 8
    case = make_case(2, 64, 6, guided=False)
    arguments = case.arguments(backend)
    if arguments["logits"].device.type != "cpu":
        pytest.skip("64 GiB of address space: on CPUs and as tests/compiled runs it")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    try:
        memory = mmap.mmap(-1, 4 * (stride + 64), flags=flags)
    except OSError as error:
        pytest.skip(f"no address space of 64 GiB: {error}")
    logits = torch.frombuffer(memory, dtype=torch.float32).as_strided((2, 64), (stride, 1))
    arguments["logits"] = logits.copy_(arguments["logits"])
    exact = conditional_score(**case.arguments("float64"), prediction="x0")
    assert relative_error(conditional_score(**arguments, prediction="x0"), exact) < 2e-5
