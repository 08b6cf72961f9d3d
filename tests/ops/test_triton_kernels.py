"""What only the Triton backend has: its search, its two ways through a row, its tiles and scales.

Runs on a GPU, or in the interpreter (see test_triton.py).
"""

from __future__ import annotations

import pytest
import torch
from ops.cases import INTERPRETED, Case, device_of, make_case, relative_error
from ops.test_flow_solve import assert_flows_to, make_inputs
from torch import Tensor

from dd2_fast.ops import conditional_score, flow_solve, sample_code
from dd2_fast.ops.filtering import filter_logits, guided_logits

pytestmark = [
    pytest.mark.skipif(
        not INTERPRETED and not torch.cuda.is_available(),
        reason="no NVIDIA GPU; test_triton.py runs them in the interpreter",
    ),
    *([] if INTERPRETED else [pytest.mark.gpu]),
]

# How logits may be distributed: the search supposes normal ones, and bins of equal width.
ROWS = {
    "normal": lambda normal: 2 * normal,
    "heavy_tail": lambda normal: normal.sinh() ** 3,
    "few_above": lambda normal: normal + 10 * (torch.arange(normal.shape[1]) % 50 == 0),
    "two_values": lambda normal: normal.sign(),
    "huge": lambda normal: normal * 1e30,
    "tiny": lambda normal: normal * 1e-42,
    "far_from_zero": lambda normal: normal + 3e4,
    "mostly_excluded": lambda normal: normal.where(normal > 1.5, -torch.inf),
    "mostly_low": lambda normal: normal.where(normal > 1.5, -1e9),
    "powers": lambda normal: 2.0 ** -(torch.arange(normal.shape[1]) % 120).expand_as(normal),
    "far_apart": lambda normal: normal.index_fill(1, torch.tensor([3]), -3e38).index_fill(
        1, torch.tensor([9]), 3e38
    ),
}


@pytest.mark.parametrize("filters", [(1, 1.0), (90, 1.0), (90, 0.9), (0, 0.5), (0, 0.999)])
@pytest.mark.parametrize("name", ROWS)
def test_threshold_is_the_smallest_kept_logit(name: str, filters: tuple[int, float]) -> None:
    """Exact for top-k; for top-p up to one logit whose mass is next to the boundary."""
    from dd2_fast.ops.triton_rows import TeacherRows

    generator = torch.Generator().manual_seed(len(name))
    cond = ROWS[name](torch.randn(2, 1000, generator=generator)).to(torch.bfloat16)
    uncond = cond.roll(1, 1) if name == "normal" else None
    scale = torch.tensor([1.7, -0.3])
    guided = guided_logits(cond.float(), None if uncond is None else uncond.float(), scale)
    kept = filter_logits(guided.double(), *filters)
    device = device_of("triton")
    moved = None if uncond is None else uncond.to(device)
    threshold, largest = TeacherRows(cond.to(device), moved, scale.to(device), *filters).limits()
    assert torch.equal(largest.cpu(), guided.amax(1))
    wanted = kept.where(kept > -torch.inf, torch.inf).amin(1)
    assert torch.equal(threshold.cpu().double(), wanted)


def test_rows_beyond_one_block_are_streamed() -> None:
    case = make_case(3, 20_000, 4, top_k=900, top_p=0.9)
    exact = conditional_score(**case.arguments("float64"), prediction="x0")
    x0 = conditional_score(**case.arguments("triton"), prediction="x0")
    assert relative_error(x0, exact) < 1e-4
    assert draws(case, "triton", seed=3) == draws(case, "float64", seed=3)
    inputs = make_inputs(2, 20_000, 4, backend="triton")
    for options in ({"steps": 1}, {"steps": 2, "top_k": 900}):
        assert_flows_to(flow_solve(**inputs, **options, backend="triton"), inputs, **options)


def draws(case: Case, backend: str, seed: int, dtype: torch.dtype = torch.float32) -> list[int]:
    names = ("logits", "uncond_logits", "guidance_scale", "top_k", "top_p", "backend")
    arguments = case.arguments(backend, dtype)
    return sample_code(**{name: arguments[name] for name in names}, seed=seed).tolist()


@pytest.mark.parametrize("filters", [(0, 1.0), (40, 0.9)], ids=["dense", "filtered"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_draws_equal_the_float64_draws(dtype: torch.dtype, filters: tuple[int, float]) -> None:
    case = make_case(30, 333, 1, top_k=filters[0], top_p=filters[1], dtype=dtype)
    assert draws(case, "triton", 2**40 + 5, dtype) == draws(case, "float64", 2**40 + 5)


@pytest.mark.parametrize("filters", [(0, 1.0), (300, 0.9), (20_000, 1.0)], ids=str)
@pytest.mark.parametrize("vocabulary", [100, 5000, 20_000])
def test_flow_keeps_what_the_filters_keep(vocabulary: int, filters: tuple[int, float]) -> None:
    """In order, over the ends of the parts that a row is read in; logits have ties."""
    from dd2_fast.ops.flow_solve.triton import _keep_codes
    from dd2_fast.ops.triton_rows import TeacherRows

    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(4, vocabulary, generator=generator).to(torch.bfloat16)
    logits[0, ::3] = -torch.inf
    logits[1] = -torch.inf
    logits[2, vocabulary // 2] = torch.nan
    moved, scale = (value.to(device_of("triton")) for value in (logits, torch.ones(4)))
    count, largest, code, kept = _keep_codes(TeacherRows(moved, None, scale, *filters))
    wanted = filter_logits(logits.double(), *filters)
    assert largest[[0, 3]].tolist() == wanted[[0, 3]].amax(1).tolist()
    if code is None or kept is None:
        assert filters[0] in (0, 20_000) and count.tolist() == [vocabulary, 0, 0, vocabulary]
        return
    for row in (0, 3):
        (codes,) = torch.where(wanted[row] > -torch.inf)
        assert code[row, : count[row]].tolist() == codes.tolist()
        assert kept[row, : count[row]].tolist() == wanted[row, codes].tolist()
    assert count[[1, 2]].tolist() == [0, 0]


def test_flow_of_rows_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from dd2_fast.ops.flow_solve import triton

    inputs = make_inputs(5, 90, 3, 2, backend="triton")
    options = {"steps": 3, "top_k": 20, "top_p": 0.9}
    whole = flow_solve(**inputs, **options, backend="triton")
    monkeypatch.setattr(triton, "_KEPT", 2 * 90 + 1)
    assert torch.equal(flow_solve(**inputs, **options, backend="triton"), whole)
    assert_flows_to(whole, inputs, **options)


@pytest.mark.parametrize("dim", [1, 33, 130, 5000])
@pytest.mark.parametrize("top_k", [0, 9])
def test_flow_over_codes_of_any_width(dim: int, top_k: int) -> None:
    inputs = make_inputs(3, 40, dim, backend="triton")
    options = {"steps": 3, "top_k": top_k}
    assert_flows_to(flow_solve(**inputs, **options, backend="triton"), inputs, **options)


def solve(arguments: dict, direction: Tensor) -> tuple[Tensor, Tensor]:
    x_t = arguments["x_t"].clone().requires_grad_()
    x0 = conditional_score(**{**arguments, "x_t": x_t}, prediction="x0")
    return x0.detach(), torch.autograd.grad(x0, x_t, direction.to(x0))[0]


@pytest.mark.parametrize("major", [8, 9, 10, 12])
@pytest.mark.parametrize("dim", [3, 32, 40, 64, 70, 130])
@pytest.mark.parametrize("filters", [(0, 1.0), (30, 0.9)], ids=["dense", "filtered"])
def test_tiles_of_every_gpu(
    monkeypatch: pytest.MonkeyPatch, major: int, dim: int, filters: tuple[int, float]
) -> None:
    from dd2_fast.ops.conditional_score import triton

    monkeypatch.setattr(triton, "compute_major", lambda tensor: major)
    case = make_case(5, 90, dim, 3, t=(0.2, 1.0), top_k=filters[0], top_p=filters[1])
    direction = torch.randn(case.x_t.shape, generator=torch.Generator().manual_seed(1))
    exact, computed = (
        solve(case.arguments(name), direction.double()) for name in ("float64", "triton")
    )
    assert relative_error(computed[0], exact[0]) < 2e-6
    assert relative_error(computed[1], exact[1]) < 5e-5


@pytest.mark.parametrize("size", [2.0**-40, 1e-3, 3.0, 2.0**40])
def test_vectors_of_any_size(size: float) -> None:
    """Halves reach from 6e-8 to 65504; a dimension much smaller than the largest keeps digits."""
    case = make_case(20, 200, 6, t=(0.3, 1.0))
    factors = size * torch.tensor([1.0, 1.0, 0.1, 0.01, 1e-3, 1e-3], dtype=torch.float64)
    direction = size * torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    computed = []
    for name in ("float64", "triton"):
        arguments = case.arguments(name)
        # At any size, t that large leaves several codes to a token.
        arguments["x_t"] = arguments["x_t"] * factors.to(arguments["x_t"])
        arguments["codebook"] = arguments["codebook"] * factors.to(arguments["x_t"])
        computed.append(solve(arguments, direction.double()))
    for value, right in zip(computed[1], computed[0], strict=True):
        each = (value.cpu() - right).norm(dim=0) / right.norm(dim=0).clamp(min=1e-30)
        assert (each < 1e-4).all()


@pytest.mark.parametrize("t", [0.02, 0.05, 0.3])
@pytest.mark.parametrize("spread", [0.05, 0.3])
def test_clustered_codes(t: float, spread: float) -> None:
    """Budget 1e-4 where distances within a cluster are much smaller than its distance from 0."""
    case = make_case(64, 256, 16, t=(t, t), guided=False)
    generator = torch.Generator().manual_seed(2)
    centre = torch.randn(8, 16, generator=generator)[torch.arange(256) % 8]
    codebook = centre + spread * torch.randn(256, 16, generator=generator)
    clean = codebook[torch.randint(256, (64,), generator=generator)]
    x_t = (1 - t) * clean + t * torch.randn(64, 16, generator=generator)
    changes = {"codebook": codebook, "x_t": x_t}
    exact, eager, computed = (
        conditional_score(
            **{n: changes[n].to(v) if n in changes else v for n, v in arguments.items()},
            prediction="x0",
        )
        for arguments in map(case.arguments, ("float64", "torch", "triton"))
    )
    assert relative_error(computed, exact) < min(1e-4, 2 * relative_error(eager, exact) + 2e-6)


def test_unfiltered_logits_far_from_zero_keep_their_digits() -> None:
    case = make_case(20, 300, 6, guided=False, t=(0.3, 1.0))
    arguments = {name: case.arguments(name) for name in ("float64", "triton")}
    for values in arguments.values():
        values["logits"] = (values["logits"].float() + 3e4).to(values["logits"])
        values["logits"][3, :64] = -torch.inf
    exact, x0 = (conditional_score(**values, prediction="x0") for values in arguments.values())
    assert relative_error(x0, exact) < 1e-5
