"""One set of tests for every backend of ``flow_solve``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from ops.cases import (
    COMPILERS,
    GPU_BACKENDS,
    device_of,
    pairwise_with_backends,
    runnable_backends,
    unaligned,
)
from ops.oracle import kept_codes, posterior_mean
from scipy import stats
from scipy.integrate import solve_ivp
from torch import Tensor

from dd2_fast.ops import flow_solve, nearest_code

BACKENDS = pytest.mark.parametrize("backend", runnable_backends())
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# (rows, vocabulary, dim, draws, guided, top_k, top_p, steps), each with the regime it covers
REGIMES = {
    "one_code": (3, 1, 4, None, False, 0, 1.0, 5),
    "one_token": (1, 300, 8, None, True, 0, 1.0, 20),
    "ragged": (50, 101, 5, None, True, 17, 0.9, 20),
    "no_filter": (50, 1000, 16, None, True, 0, 1.0, 10),
    "no_filter_draws": (7, 203, 33, 5, True, 0, 1.0, 10),
    "many_draws": (3, 203, 9, 30, False, 0, 1.0, 10),
    "top_p_draws": (5, 500, 32, 7, True, 0, 0.8, 20),
    "top_k_draws": (5, 500, 40, 30, False, 300, 1.0, 10),
    "two_draws": (5, 500, 24, 2, False, 300, 0.9, 10),
    "two_steps": (200, 50, 3, None, True, 0, 1.0, 2),
    "three_steps_draws": (30, 50, 3, 9, True, 30, 0.9, 3),
    "fine_steps": (12, 64, 8, None, True, 0, 1.0, 120),
    "wide_codes": (20, 60, 70, None, False, 0, 1.0, 3),
}


def make_inputs(
    rows: int,
    vocabulary: int,
    dim: int,
    draws: int | None = None,
    guided: bool = True,
    dtype: torch.dtype = torch.float32,
    backend: str = "cpu",
) -> dict:
    generator = torch.Generator().manual_seed(vocabulary)
    lead = (rows,) if draws is None else (rows, draws)
    cond = 2 * torch.randn(rows, vocabulary, generator=generator)
    uncond = cond + torch.randn(rows, vocabulary, generator=generator)
    noise = torch.randn(*lead, dim, generator=generator)
    codebook = torch.randn(vocabulary, dim, generator=generator)
    scale = 1 + 2 * torch.rand(rows, generator=generator)
    device = device_of(backend)
    return {
        "noise": noise.to(device),
        "logits": cond.to(device, dtype),
        "codebook": codebook.to(device),
        "uncond_logits": uncond.to(device, dtype) if guided else None,
        "guidance_scale": scale.to(device) if guided else 1.0,
    }


def double(inputs: dict) -> dict:
    return {n: v.double() if isinstance(v, Tensor) else v for n, v in inputs.items()}


def assert_flows_to(codes: Tensor, inputs: dict, **options: Any) -> None:
    """The codes of the float64 flow; another only where that flow reaches it from noise moved by
    1e-5, so that the path passes the boundary between the two within rounding."""
    exact = flow_solve(**double(inputs), **options, backend="torch")
    assert codes.dtype == torch.int64 and codes.shape == exact.shape
    different = (codes != exact).nonzero().tolist()
    assert len(different) <= 1 + codes.numel() // 100
    for i, *draw in different:
        row = {n: v if v is None or n == "codebook" else v[i : i + 1]
               for n, v in double(inputs).items() if isinstance(v, Tensor | None)}  # fmt: skip
        noise = row["noise"][(0, *draw)]
        row["noise"] = noise + 1e-5 * torch.randn(1, 500, len(noise)).to(noise)
        reached = flow_solve(**row, **options, backend="torch")
        assert codes[(i, *draw)] in reached, f"token {i, *draw}: {codes[(i, *draw)]}"


def fine_code(inputs: dict, i: int, top_k: int, top_p: float) -> int | None:
    """The code of row i by an adaptive integrator over the definition in NumPy float64, down to
    t = 0.01; None where no code is clearly the nearest there."""
    row = double(inputs)
    noise, cond, uncond = (row[n][i].numpy() for n in ("noise", "logits", "uncond_logits"))
    scale, codebook = row["guidance_scale"][i].item(), row["codebook"].numpy()

    def velocity(t: float, x: np.ndarray) -> np.ndarray:
        x0, _ = posterior_mean(x, t, cond, uncond, scale, codebook, top_k, top_p)
        return (x - x0) / t

    end = solve_ivp(velocity, (1.0, 0.01), noise, method="DOP853", rtol=1e-7, atol=1e-8).y[:, -1]
    distance = np.linalg.norm(codebook - end, axis=1)
    keep = kept_codes(uncond + scale * (cond - uncond), top_k, top_p)
    distance[~keep] = np.inf
    return int(distance.argmin()) if distance.min() < 0.3 else None


@BACKENDS
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (12, 0.9)], ids=["all", "filtered"])
def test_finds_the_code_of_a_fine_integration(backend: str, top_k: int, top_p: float) -> None:
    """Heun's 400 steps may lose a token next to the boundary of two codes."""
    inputs = make_inputs(16, 40, 3, backend=backend)
    codes = flow_solve(**inputs, steps=400, top_k=top_k, top_p=top_p, backend=backend)
    exact = [fine_code(make_inputs(16, 40, 3), i, top_k, top_p) for i in range(16)]
    pairs = [(c, e) for c, e in zip(codes.tolist(), exact, strict=True) if e is not None]
    assert len(pairs) >= 14
    assert sum(c != e for c, e in pairs) <= 1


@pairwise_with_backends(regime=REGIMES, solver=["heun", "euler"], dtype=DTYPES)
def test_equals_the_float64_flow(
    backend: str, dtype: torch.dtype, solver: str, regime: tuple
) -> None:
    *shape, guided, top_k, top_p, steps = regime
    inputs = make_inputs(*shape, guided, dtype, backend)
    options = {"top_k": top_k, "top_p": top_p, "steps": steps, "solver": solver}
    assert_flows_to(flow_solve(**inputs, **options, backend=backend), inputs, **options)


@BACKENDS
@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_takes_the_solvers_steps(backend: str, solver: str) -> None:
    """Three steps of NumPy's, among so many codes that most tell where a flow ends to 1%."""
    inputs = make_inputs(1, 2000, 2, 300, guided=False, backend=backend)
    inputs["logits"] = 0.2 * inputs["logits"]
    codes = flow_solve(**inputs, steps=3, solver=solver, backend=backend).flatten().tolist()
    noise, logits = (inputs[n][0].double().cpu().numpy() for n in ("noise", "logits"))
    codebook = inputs["codebook"].double().cpu().numpy()

    def velocity(x: np.ndarray, t: float) -> np.ndarray:
        return (x - posterior_mean(x, t, logits, None, 1.0, codebook)[0]) / t

    wrong = 0
    for x, code in zip(noise, codes, strict=True):
        for t, s in ((1, 2 / 3), (2 / 3, 1 / 3)):
            slope = velocity(x, t)
            if solver == "heun":
                slope = (slope + velocity(x + (s - t) * slope, s)) / 2
            x = x + (s - t) * slope
        end = posterior_mean(x, 1 / 3, logits, None, 1.0, codebook)[0]
        distance = np.linalg.norm(codebook - end, axis=1)
        wrong += int(distance[code] > distance.min() + 1e-5)
    assert wrong == 0


@BACKENDS
def test_equals_the_posterior_mean_after_one_step(backend: str) -> None:
    """One step ends at the mean of the distribution whatever the noise."""
    inputs = make_inputs(9, 60, 4, guided=False, backend=backend)
    mean = inputs["logits"].double().softmax(-1) @ inputs["codebook"].double()
    for solver in ("heun", "euler"):
        codes = flow_solve(**inputs, steps=1, solver=solver, backend=backend)
        assert torch.equal(codes, nearest_code(mean, inputs["codebook"]))


@BACKENDS
@pytest.mark.parametrize("dim", [1, 3, 17])
def test_two_codes_part_at_a_quantile(backend: str, dim: int) -> None:
    """Between two codes paths keep the order along the line through them, so noise with a
    projection under the normal quantile of the first code's probability ends in the first."""
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(2, dim, generator=generator)
    axis = (codebook[1] - codebook[0]) / (codebook[1] - codebook[0]).norm()
    noise = torch.randn(500, dim, generator=generator)
    logits = torch.tensor([math.log(0.3), math.log(0.7)]).expand(500, 2)
    along = noise @ axis - stats.norm.ppf(0.3)
    moved = (value.to(device_of(backend)) for value in (noise, logits, codebook))
    codes = flow_solve(*moved, steps=200, backend=backend).cpu()
    clear = along.abs() > 0.02
    assert torch.equal(codes[clear], (along > 0).long()[clear])


@BACKENDS
def test_codes_follow_the_teachers_distribution(backend: str) -> None:
    inputs = make_inputs(1, 8, 3, guided=False, backend=backend)
    noise = torch.randn(1, 4000, 3, generator=torch.Generator().manual_seed(1))
    inputs["noise"] = noise.to(device_of(backend))
    codes = flow_solve(**inputs, steps=100, top_k=6, backend=backend).cpu()
    kept = inputs["logits"][0].cpu().double().numpy()
    mass = np.where(kept_codes(kept, 6, 1.0), np.exp(kept), 0.0)
    found = np.bincount(codes[0].numpy(), minlength=8) / 4000
    assert not found[mass == 0].any()
    assert np.abs(found - mass / mass.sum()).max() < 0.04


@BACKENDS
@pytest.mark.parametrize("draws", [1, 2, 13])
def test_only_kept_codes_are_found(backend: str, draws: int) -> None:
    """Few steps end between codes, next to ones that the filters drop."""
    inputs = make_inputs(40, 300, 6, draws, backend=backend)
    guided = torch.lerp(
        inputs["uncond_logits"], inputs["logits"], inputs["guidance_scale"][:, None]
    )
    codes = flow_solve(**inputs, steps=2, top_k=5, top_p=0.9, backend=backend)
    largest = guided.topk(5).values[:, -1:]
    assert (guided.gather(1, codes) >= largest - 1e-5).all()
    inputs["logits"][:, :298] = -torch.inf
    for options in ({}, {"top_k": 200}, {"top_p": 0.999}):
        codes = flow_solve(**inputs, steps=1, **options, backend=backend)
        assert (codes >= 298).all()


@BACKENDS
@pytest.mark.parametrize("top_k", [0, 7])
def test_equal_codes_give_the_first(backend: str, top_k: int) -> None:
    inputs = make_inputs(20, 10, 4, guided=False, backend=backend)
    twice = torch.cat([inputs["codebook"]] * 2)
    logits = torch.cat([inputs["logits"]] * 2, dim=1)
    codes = flow_solve(inputs["noise"], logits, twice, top_k=2 * top_k, backend=backend)
    assert (codes < 10).all() and (codes >= 0).all()


@BACKENDS
@pytest.mark.parametrize("draws", [None, 3], ids=["token", "draws"])
@pytest.mark.parametrize("filters", [{}, {"top_k": 30}, {"top_p": 0.9}], ids=["none", "k", "p"])
def test_invalid_tokens_give_minus_one_alone(
    backend: str, filters: dict, draws: int | None
) -> None:
    inputs = make_inputs(12, 200, 4, draws, backend=backend)
    clean = flow_solve(**inputs, **filters, backend=backend)
    inputs["logits"][1, 7] = torch.nan
    inputs["uncond_logits"][2, 199] = torch.nan
    inputs["logits"][3] = -torch.inf
    inputs["logits"][4, 3] = torch.inf
    inputs["uncond_logits"][6] = -torch.inf
    inputs["guidance_scale"][7] = torch.nan
    bad = torch.zeros_like(clean, dtype=torch.bool)
    bad[[1, 2, 3, 4, 6, 7]] = True
    for i, value in ((8, torch.nan), (9, torch.inf), (10, -torch.inf)):
        token = (i,) if draws is None else (i, 1)
        inputs["noise"][(*token, 2)] = value
        bad[token] = True
    codes = flow_solve(**inputs, **filters, backend=backend)
    assert (codes[bad] == -1).all()
    assert torch.equal(codes[~bad], clean[~bad])
    inputs["codebook"][5, 1] = torch.nan
    assert (flow_solve(**inputs, **filters, backend=backend) == -1).all()


@BACKENDS
@pytest.mark.parametrize("dim", [8, 32])
def test_unaligned_codebook(backend: str, dim: int) -> None:
    inputs = make_inputs(3, 90, dim, 2, backend=backend)
    wanted = flow_solve(**inputs, top_k=30, backend=backend)
    inputs["codebook"] = unaligned(inputs["codebook"])
    assert torch.equal(flow_solve(**inputs, top_k=30, backend=backend), wanted)


@BACKENDS
def test_strided_inputs(backend: str) -> None:
    plain = make_inputs(30, 64, 6, 4, backend=backend)
    strided = dict(plain)
    for name in ("logits", "uncond_logits"):
        wide = torch.full((30, 3 * 64), torch.nan, device=plain[name].device)
        wide[:, 64:128] = plain[name]
        strided[name] = wide[:, 64:128]
    strided["noise"] = plain["noise"].transpose(0, 2).contiguous().transpose(0, 2)
    strided["codebook"] = plain["codebook"].T.contiguous().T
    wanted = flow_solve(**plain, top_k=20, backend=backend)
    assert torch.equal(flow_solve(**strided, top_k=20, backend=backend), wanted)
    columns = dict(plain, logits=plain["logits"].T.contiguous().T)
    assert torch.equal(flow_solve(**columns, top_k=20, backend=backend), wanted)
    alone = dict(plain, uncond_logits=strided["uncond_logits"])
    assert torch.equal(flow_solve(**alone, top_k=20, backend=backend), wanted)


@BACKENDS
def test_shapes(backend: str) -> None:
    inputs = make_inputs(6, 40, 3, guided=False, backend=backend)
    noise, logits, codebook = (inputs[n] for n in ("noise", "logits", "codebook"))
    flat = flow_solve(noise, logits, codebook, backend=backend)
    assert flow_solve(noise[:0], logits[:0], codebook, backend=backend).shape == (0,)
    none = noise[:, None][:, :0]
    assert flow_solve(none, logits, codebook, backend=backend).shape == (6, 0)
    assert flow_solve(noise[0], logits[0], codebook, backend=backend).shape == ()
    shaped = flow_solve(noise.reshape(2, 3, 3), logits.reshape(2, 3, 40), codebook, backend=backend)
    assert torch.equal(shaped, flat.reshape(2, 3))
    shared = flow_solve(noise, logits[0], codebook, backend=backend)
    single = flow_solve(noise, logits[:1].expand(6, 40), codebook, backend=backend)
    assert torch.equal(shared, single)
    assert flow_solve(noise.requires_grad_(), logits, codebook, backend=backend).equal(flat)


@BACKENDS
def test_opcheck(backend: str) -> None:
    inputs = make_inputs(4, 30, 3, 2, backend=backend)
    for uncond in (inputs["uncond_logits"], None):
        torch.library.opcheck(
            torch.ops.dd2_fast.flow_solve.default,
            (inputs["noise"], inputs["logits"], uncond, inputs["guidance_scale"],
             inputs["codebook"], 4, "heun", 10, 0.9, backend),
        )  # fmt: skip


@BACKENDS
@COMPILERS
def test_compiles_without_graph_breaks(backend: str, compiler: str) -> None:
    inputs = make_inputs(12, 64, 3, backend=backend)
    noise = inputs.pop("noise")

    def solve(noise: Tensor, steps: int) -> Tensor:
        return flow_solve(noise * 0.5, **inputs, top_k=10, steps=steps, backend=backend) + 1

    compiled = torch.compile(solve, fullgraph=True, backend=compiler)
    for steps in (4, 6, 7):
        assert torch.equal(compiled(noise, steps), solve(noise, steps))


@pytest.mark.parametrize("backend", runnable_backends(GPU_BACKENDS))
def test_cuda_graph(backend: str) -> None:
    inputs = make_inputs(32, 512, 8, 3, backend=backend)
    wanted = flow_solve(**inputs, top_k=50, backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = flow_solve(**inputs, top_k=50, backend=backend)
    captured.fill_(-7)
    graph.replay()
    assert torch.equal(captured, wanted)


BAD = {
    "noise type": ({"noise": [0.0]}, TypeError, "noise: expected a torch.Tensor, got list"),
    "noise shape": ({"noise": torch.zeros(4, 2)}, ValueError, r"noise: .*\[4, 3\].*got \[4, 2\]"),
    "noise rows": ({"noise": torch.zeros(5, 3)}, ValueError, r"noise: .*got \[5, 3\]"),
    "codebook": ({"codebook": torch.zeros(8, 3)}, ValueError, "codebook: .*V = 9"),
    "logits dtype": ({"logits": torch.zeros(4, 9).int()}, TypeError, "logits.*got int32"),
    "steps zero": ({"steps": 0}, ValueError, "steps: expected at least 1, got 0"),
    "steps type": ({"steps": 2.0}, TypeError, "steps: expected an int, got float"),
    "steps size": ({"steps": 2**70}, ValueError, f"steps: expected .*64 bits, got {2**70}"),
    "solver": ({"solver": "rk4"}, ValueError, "solver: expected .*'heun', 'euler', got 'rk4'"),
    "uncond shape": ({"uncond_logits": torch.zeros(4, 8)}, ValueError, r"uncond_logits.*\[4, 8\]"),
    "scale alone": ({"guidance_scale": 2.0}, ValueError, "guidance_scale.*uncond_logits"),
    "top_k": ({"top_k": -1}, ValueError, "top_k.*got -1"),
    "top_p": ({"top_p": 0.0}, ValueError, r"top_p: .*\(0, 1\], got 0.0"),
    "device": ({"noise": torch.zeros(4, 3, device="meta")}, ValueError, "noise: expected device"),
    "backend": ({"backend": "metal"}, ValueError, "backend.*'torch', got 'metal'"),
    "gradient": (
        {"logits": torch.zeros(4, 9, requires_grad=True)}, ValueError, "logits: .*constant",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change,error,message", BAD.values(), ids=BAD.keys())
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {
        "noise": torch.zeros(4, 3), "logits": torch.zeros(4, 9), "codebook": torch.randn(9, 3)
    }  # fmt: skip
    flow_solve(**arguments)
    with pytest.raises(error, match=message):
        flow_solve(**{**arguments, **change})
