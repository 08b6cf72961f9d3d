"""The CUDA kernel of the flow ODE, run on the CPU by the shim, against the float64 reference. Finds
errors of logic; tests/compiled finds races."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from native.structs import Shim, teacher_rows, unaligned
from ops.test_flow_solve import assert_flows_to, make_inputs

from dd2_fast.ops import flow_solve
from dd2_fast.ops.flow_solve.native import FlowSolveParams

STAGED = pytest.mark.parametrize("staged", [True, False], ids=["staged", "streamed"])
SOLVERS = pytest.mark.parametrize("solver", ["heun", "euler"])


@pytest.fixture
def kernel(shim_of: Callable[[str], Shim]) -> Shim:
    return shim_of("flow_solve")


def run(
    kernel: Shim, inputs: dict, *, staged: bool, steps: int = 5, solver: str = "heun",
    top_k: int = 0, top_p: float = 1.0, processors: int = 1, reverse_order: bool = False,
) -> torch.Tensor:  # fmt: skip
    noise, logits, codebook = (inputs[n].contiguous() for n in ("noise", "logits", "codebook"))
    scale = torch.as_tensor(inputs["guidance_scale"]).expand(len(logits)).contiguous().float()
    out = torch.full(noise.shape[:-1], -7)
    params = FlowSolveParams(
        teacher=teacher_rows(logits, inputs["uncond_logits"], scale, top_k, top_p),
        out=out.data_ptr(),
        noise=noise.data_ptr(),
        codebook=codebook.data_ptr(),
        draws=noise.shape[1] if noise.ndim == 3 else 1,
        dim=codebook.shape[1],
        steps=steps,
        heun=solver == "heun",
    )
    kernel.run(params, staged=staged, processors=processors, reverse_order=reverse_order)
    return out


# (rows, vocabulary, dim, draws, guided, top_k, top_p, steps), each with the regime it covers
REGIMES = {
    "one_code": (3, 1, 4, None, False, 0, 1.0, 5),
    "less_than_a_warp": (8, 19, 3, None, True, 0, 1.0, 10),
    "ragged": (8, 301, 5, None, True, 17, 0.9, 20),
    "vector_loads": (4, 512, 8, 3, True, 100, 1.0, 10),
    "most_codes_kept": (4, 500, 8, 2, True, 400, 1.0, 10),
    "no_filter": (4, 700, 32, None, True, 0, 1.0, 6),
    "top_p_draws": (2, 1000, 16, 5, False, 0, 0.8, 6),
    "two_dim_blocks": (3, 300, 40, 2, True, 60, 0.9, 6),
    "one_step": (4, 130, 9, 2, True, 60, 0.9, 1),
    "two_steps": (40, 50, 3, None, True, 0, 1.0, 2),
    "var": (2, 4096, 32, None, True, 900, 0.95, 4),
    "llamagen": (1, 16384, 8, 2, True, 900, 1.0, 4),
}


@STAGED
@SOLVERS
@pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES.keys())
def test_equals_the_float64_flow(kernel: Shim, regime: tuple, solver: str, staged: bool) -> None:
    *shape, guided, top_k, top_p, steps = regime
    inputs = make_inputs(*shape, guided)
    options = {"top_k": top_k, "top_p": top_p, "steps": steps, "solver": solver}
    assert_flows_to(run(kernel, inputs, staged=staged, **options), inputs, **options)


@STAGED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_half_precision_logits(kernel: Shim, dtype: torch.dtype, staged: bool) -> None:
    for dim in (8, 12):
        inputs = make_inputs(6, 303, dim, 2, True, dtype)
        options = {"top_k": 60, "top_p": 0.9, "steps": 6}
        assert_flows_to(run(kernel, inputs, staged=staged, **options), inputs, **options)


@STAGED
@pytest.mark.parametrize("processors", [2, 3, 9])
def test_blocks_share_the_draws_of_a_row(kernel: Shim, processors: int, staged: bool) -> None:
    inputs = make_inputs(2, 200, 6, 7)
    options = {"top_k": 50, "top_p": 0.9, "staged": staged}
    wanted = run(kernel, inputs, **options)
    assert torch.equal(run(kernel, inputs, **options, processors=processors), wanted)


@STAGED
@pytest.mark.parametrize("dim", [8, 32])
def test_unaligned_codebook(kernel: Shim, dim: int, staged: bool) -> None:
    inputs = make_inputs(3, 90, dim, 2)
    aligned = run(kernel, inputs, top_k=30, staged=staged)
    inputs["codebook"] = unaligned(inputs["codebook"])
    assert torch.equal(run(kernel, inputs, top_k=30, staged=staged), aligned)


@STAGED
@SOLVERS
def test_thread_order_changes_nothing(kernel: Shim, solver: str, staged: bool) -> None:
    """A missing barrier that one order of the threads hides, the reverse order may show."""
    for dim in (8, 40):
        inputs = make_inputs(3, 600, dim, 2)
        options = {"top_k": 90, "top_p": 0.9, "solver": solver, "staged": staged}
        forward = run(kernel, inputs, **options)
        assert torch.equal(forward, run(kernel, inputs, **options, reverse_order=True))


@STAGED
@pytest.mark.parametrize("top_k", [0, 14, 600], ids=["all", "few", "most"])
def test_equal_codes_give_the_first(kernel: Shim, top_k: int, staged: bool) -> None:
    inputs = make_inputs(6, 400, 4, guided=False)
    for name, dim in (("codebook", 0), ("logits", 1)):
        inputs[name] = torch.cat([inputs[name]] * 2, dim)
    codes = run(kernel, inputs, top_k=top_k, staged=staged)
    assert (codes < 400).all() and (codes >= 0).all()


@STAGED
@pytest.mark.parametrize("filters", [(7, 1.0), (0, 0.5), (250, 0.5), (0, 1e-6)])
def test_only_kept_codes_are_found(kernel: Shim, filters: tuple, staged: bool) -> None:
    """Ties stay together; one step ends between codes, next to ones that the filters drop."""
    inputs = make_inputs(4, 500, 4, guided=False)
    values = torch.tensor([0.0, -0.0, 1.5, -2.0, 3e4, -torch.inf])
    inputs["logits"] = values[
        torch.randint(6, (4, 500), generator=torch.Generator().manual_seed(0))
    ]
    inputs["logits"][2:].clamp_(max=0)
    options = {"top_k": filters[0], "top_p": filters[1], "steps": 1}
    assert_flows_to(run(kernel, inputs, staged=staged, **options), inputs, **options)


@STAGED
@pytest.mark.parametrize("filters", [{}, {"top_k": 30}, {"top_p": 0.9}], ids=["none", "k", "p"])
def test_invalid_tokens_give_minus_one_alone(kernel: Shim, filters: dict, staged: bool) -> None:
    inputs = make_inputs(9, 200, 4, 2)
    wanted = flow_solve(**inputs, **filters, steps=5, backend="torch")
    inputs["logits"][1, 7] = torch.nan
    inputs["uncond_logits"][2, 199] = torch.nan
    inputs["logits"][3] = -torch.inf
    inputs["logits"][4, 3] = torch.inf
    inputs["guidance_scale"][5] = torch.nan
    wanted[1:6] = -1
    for i, value in ((6, torch.nan), (7, torch.inf), (8, -torch.inf)):
        inputs["noise"][i, 1, 2] = value
        wanted[i, 1] = -1
    assert torch.equal(run(kernel, inputs, staged=staged, **filters), wanted)
    dropped = inputs["logits"][0].argmin()
    for value in (torch.nan, torch.inf):
        inputs["codebook"][dropped, 1] = value
        assert (run(kernel, inputs, staged=staged, **filters) == -1).all()


@STAGED
@pytest.mark.parametrize("scale", [10.0, 100.0, 1000.0])
@pytest.mark.parametrize("dim", [8, 12])
def test_far_noise(kernel: Shim, dim: int, scale: float, staged: bool) -> None:
    """At t = 1 the distances are all the same, and the logits decide."""
    inputs = make_inputs(12, 200, dim, guided=True)
    inputs["noise"] = scale * inputs["noise"]
    options = {"top_k": 30, "steps": 1}
    wanted = flow_solve(**{n: v.double() for n, v in inputs.items()}, **options, backend="torch")
    codes = run(kernel, inputs, staged=staged, **options)
    assert torch.equal(codes, wanted)
