"""One set of tests for every backend of ``conditional_score``."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from ops.cases import (
    COMPILERS,
    GPU_BACKENDS,
    Case,
    assert_once_differentiable,
    device_of,
    make_case,
    pairwise_with_backends,
    relative_error,
    runnable_backends,
)
from ops.oracle import posterior_mean

from dd2_fast.ops import conditional_score
from dd2_fast.ops.registry import BACKENDS as BACKEND_NAMES

BACKENDS = pytest.mark.parametrize("backend", runnable_backends())
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# (rows, vocabulary, dim, draws, guided, top_k, top_p), each with the regime it covers
REGIMES = {
    "one_code": (1, 1, 1, None, False, 0, 1.0),
    "ragged": (13, 101, 5, None, True, 17, 0.9),
    "few_tokens_dense": (2, 1000, 8, None, True, 0, 1.0),
    "dense_block_and_tail": (20, 333, 32, None, True, 0, 1.0),
    "dense_draws": (7, 260, 17, 3, True, 0, 1.0),
    "dense_many_draws": (3, 129, 40, 70, False, 0, 1.0),
    "top_k_only": (9, 2048, 8, None, True, 900, 1.0),
    "top_p_only": (9, 2048, 8, 2, True, 0, 0.8),
    "top_k_small": (50, 33, 3, 7, True, 5, 0.5),
    "wide_codes": (4, 64, 70, 2, True, 20, 0.95),
    "var": (64, 4096, 32, None, True, 900, 0.95),
    "llamagen": (16, 16384, 8, None, True, 900, 1.0),
}


def regime_case(regime: tuple, dtype: torch.dtype = torch.float32, **options) -> Case:
    rows, vocabulary, dim, draws, guided, top_k, top_p = regime
    filters = {"guided": guided, "top_k": top_k, "top_p": top_p}
    return make_case(rows, vocabulary, dim, draws, dtype=dtype, **filters, **options)


def x0_and_gradient(arguments: dict, direction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x_t = arguments["x_t"].clone().requires_grad_()
    x0 = conditional_score(**{**arguments, "x_t": x_t}, prediction="x0")
    (gradient,) = torch.autograd.grad(x0, x_t, direction.to(x0))
    return x0.detach(), gradient


@pytest.mark.parametrize("filters", [(0, 1.0), (7, 1.0), (0, 0.7), (9, 0.6)])
def test_reference_equals_definition(filters: tuple[int, float]) -> None:
    case = make_case(11, 40, 3, top_k=filters[0], top_p=filters[1], t=(0.1, 1.0))
    direction = torch.randn(11, 3, dtype=torch.float64)
    x0, gradient = x0_and_gradient(case.arguments("float64"), direction)
    for row in range(11):
        wanted, jacobian = posterior_mean(
            case.x_t[row].numpy(), case.t[row].item(), case.logits[row].numpy(),
            case.uncond_logits[row].numpy(), case.guidance_scale[row].item(),
            case.codebook.numpy(), *filters,
        )  # fmt: skip
        np.testing.assert_allclose(x0[row], wanted, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(gradient[row], jacobian @ direction[row].numpy(), atol=1e-9)


def test_reference_gradcheck() -> None:
    case = make_case(5, 50, 4, 3, top_k=20, top_p=0.9, t=(0.2, 1.0))
    arguments = case.arguments("float64")
    x_t = arguments.pop("x_t").requires_grad_()
    for prediction in ("x0", "velocity", "score"):
        assert torch.autograd.gradcheck(
            lambda x: conditional_score(x, **arguments, prediction=prediction),  # noqa: B023
            (x_t,),
        )


@pytest.mark.parametrize("backend", runnable_backends([b for b in BACKEND_NAMES if b != "torch"]))
def test_other_derivatives_are_refused(backend: str) -> None:
    arguments = make_case(5, 50, 4, top_k=20, t=(0.2, 1.0)).arguments(backend)
    x_t = arguments.pop("x_t")
    assert_once_differentiable(
        "conditional_score", lambda x: conditional_score(x, **arguments), x_t
    )


def test_reference_has_second_derivatives() -> None:
    arguments = make_case(2, 30, 3, top_k=20, t=(0.4, 1.0)).arguments("float64")
    x_t = arguments.pop("x_t").requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: conditional_score(x, **arguments), (x_t,))
    with pytest.raises(RuntimeError, match="conditional_score: differentiable once, in reverse"):
        torch.func.jvp(lambda x: conditional_score(x, **arguments), (x_t,), (x_t,))


@pairwise_with_backends(regime=REGIMES, dtype=DTYPES)
def test_matches_float64(backend: str, dtype: torch.dtype, regime: tuple) -> None:
    """Budget: 1e-4 for x0 and 1e-3 for its gradient from t = 0.02 on; and never worse than twice
    the error of the same formula in eager float32, plus rounding: 2e-6, and 5e-5 for the gradient,
    whose exponents at t = 0.02 carry the rounding of |x - c|^2 times 1 / (2 t^2) = 1250."""
    case = regime_case(regime, dtype)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(case.x_t.shape, dtype=torch.float64, generator=generator)
    exact, exact_gradient = x0_and_gradient(case.arguments("float64"), direction)
    eager, eager_gradient = x0_and_gradient(case.arguments("torch", dtype), direction)
    x0, gradient = x0_and_gradient(case.arguments(backend, dtype), direction)
    assert x0.dtype == torch.float32
    assert relative_error(x0, exact) < min(1e-4, 2 * relative_error(eager, exact) + 2e-6)
    if exact_gradient.norm() < 1e-6:
        assert (gradient.cpu() - exact_gradient).norm() < 1e-6
        return
    allowed = 2 * relative_error(eager_gradient, exact_gradient) + 5e-5
    assert relative_error(gradient, exact_gradient) < min(1e-3, allowed)


@BACKENDS
@pytest.mark.parametrize("t", [0.02, 0.05, 0.1, 0.3, 1.0])
def test_error_at_noise_level(backend: str, t: float) -> None:
    for filters in ({}, {"top_k": 900, "top_p": 0.95}):
        case = make_case(64, 4096, 32, t=(t, t), seed=int(t * 100), **filters)
        exact = conditional_score(**case.arguments("float64"), prediction="x0")
        x0 = conditional_score(**case.arguments(backend), prediction="x0")
        assert relative_error(x0, exact) < 1e-4


@BACKENDS
@pytest.mark.parametrize("t", [1e-2, 1e-4, 1e-8, 1e-15, 1e-25, 1e-38, 1e-45])
@pytest.mark.parametrize("filters", [{}, {"top_k": 50}], ids=["dense", "filtered"])
def test_tiny_noise_stays_in_the_hull(backend: str, t: float, filters: dict) -> None:
    case = make_case(40, 500, 8, t=(t, t), **filters)
    arguments = case.arguments(backend)
    arguments["t"] = torch.full_like(arguments["t"], t)
    x0, gradient = x0_and_gradient(arguments, torch.randn(case.x_t.shape))
    codes = arguments["codebook"]
    slack = 1e-5
    assert x0.isfinite().all() and gradient.isfinite().all()
    assert (x0 <= codes.max(0).values + slack).all() and (x0 >= codes.min(0).values - slack).all()
    if t <= 1e-8 and not filters:
        nearest = torch.cdist(arguments["x_t"].double(), codes.double()).argmin(-1)
        torch.testing.assert_close(x0, codes[nearest], atol=1e-5, rtol=0)


@BACKENDS
def test_noise_level_one_gives_the_teachers_mean(backend: str) -> None:
    case = make_case(8, 300, 6, guided=False, t=(1.0, 1.0))
    x0 = conditional_score(**case.arguments(backend), prediction="x0")
    wanted = case.logits.softmax(-1) @ case.codebook
    torch.testing.assert_close(x0.cpu().double(), wanted, atol=1e-5, rtol=1e-5)


@BACKENDS
def test_predictions_are_one_quantity(backend: str) -> None:
    case = make_case(6, 90, 4, 2, t=(0.1, 1.0))
    arguments = case.arguments(backend)
    x0, velocity, score = (
        conditional_score(**arguments, prediction=p) for p in ("x0", "velocity", "score")
    )
    x_t, t = arguments["x_t"], arguments["t"][..., None]
    torch.testing.assert_close(x_t - t * velocity, x0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((x_t + t * t * score) / (1 - t), x0 + 0 * t, atol=1e-3, rtol=1e-3)


@BACKENDS
@pytest.mark.parametrize("distinct", [1, 2, 5])
@pytest.mark.parametrize("filters", [(7, 1.0), (0, 0.5), (150, 0.5), (0, 1e-6)])
def test_heavy_ties(backend: str, distinct: int, filters: tuple[int, float]) -> None:
    """Equal logits share a fate: rows of a few distinct values, zeros of either sign among them."""
    generator = torch.Generator().manual_seed(distinct)
    levels = torch.tensor([0.0, -0.0, 1.5, -2.0, 3e4])[:distinct]
    logits = levels[torch.randint(distinct, (6, 700), generator=generator)]
    codebook = torch.randn(700, 4, generator=generator)
    x_t = torch.randn(6, 4, generator=generator)
    device = device_of(backend)
    x0 = conditional_score(
        x_t.to(device), 0.7, logits.to(device), codebook.to(device),
        top_k=filters[0], top_p=filters[1], prediction="x0", backend=backend,
    )  # fmt: skip
    for row in range(6):
        wanted, _ = posterior_mean(
            x_t[row].double().numpy(), 0.7, logits[row].double().numpy(), None, 1.0,
            codebook.double().numpy(), *filters,
        )  # fmt: skip
        np.testing.assert_allclose(x0[row].cpu(), wanted, atol=1e-5)


@BACKENDS
@pytest.mark.parametrize("filters", [{}, {"top_k": 30}, {"top_p": 0.9}], ids=["none", "k", "p"])
def test_invalid_rows_are_nan_alone(backend: str, filters: dict) -> None:
    case = make_case(9, 200, 6, 2, **filters)
    arguments = case.arguments(backend)
    clean = conditional_score(**arguments, prediction="x0")
    for name in ("logits", "uncond_logits", "x_t", "t", "guidance_scale"):
        arguments[name] = arguments[name].clone()
    arguments["logits"][1, 7] = torch.nan
    arguments["uncond_logits"][2, 199] = torch.nan
    arguments["logits"][3] = -torch.inf
    arguments["logits"][4, 3] = torch.inf
    arguments["x_t"][5, 1, 2] = torch.nan
    arguments["t"][6, 0] = torch.nan
    arguments["guidance_scale"][7] = torch.nan
    x0 = conditional_score(**arguments, prediction="x0")
    bad = torch.zeros(9, 2, dtype=torch.bool)
    bad[[1, 2, 3, 4, 7]] = True
    bad[5, 1] = bad[6, 0] = True
    assert x0[bad].isnan().all()
    torch.testing.assert_close(x0[~bad], clean[~bad])


@BACKENDS
@pytest.mark.parametrize("filters", [{}, {"top_k": 30}, {"top_p": 0.9}], ids=["none", "k", "p"])
def test_minus_infinity_removes_codes(backend: str, filters: dict) -> None:
    """-inf in the conditional, the unconditional or both logits equals dropping the code."""
    case = make_case(8, 240, 5, **filters)
    arguments = case.arguments(backend)
    arguments["logits"][:, 0:40] = -torch.inf
    arguments["uncond_logits"][:, 20:80] = -torch.inf
    x0 = conditional_score(**arguments, prediction="x0")
    for name in ("logits", "uncond_logits"):
        arguments[name] = arguments[name][:, 80:]
    arguments["codebook"] = arguments["codebook"][80:]
    torch.testing.assert_close(
        x0, conditional_score(**arguments, prediction="x0"), atol=1e-5, rtol=0
    )


@BACKENDS
def test_extreme_logits(backend: str) -> None:
    case = make_case(6, 300, 4, guided=False, top_p=0.9)
    arguments = case.arguments(backend)
    arguments["logits"] = arguments["logits"] * 1e4
    wanted = arguments["codebook"][arguments["logits"].argmax(-1)]
    arguments["t"] = torch.ones_like(arguments["t"])
    x0 = conditional_score(**arguments, prediction="x0")
    torch.testing.assert_close(x0, wanted, atol=1e-5, rtol=0)


@BACKENDS
def test_strided_inputs(backend: str) -> None:
    case = make_case(6, 64, 8, 3, top_k=20)
    plain = case.arguments(backend)
    strided = dict(plain)
    for name in ("logits", "uncond_logits"):
        rows = torch.full((6, 3 * 64), torch.nan, device=plain[name].device)
        rows[:, 64:128] = plain[name]
        strided[name] = rows[:, 64:128]
        assert not strided[name].is_contiguous()
    strided["x_t"] = plain["x_t"].transpose(0, 2).contiguous().transpose(0, 2)
    strided["codebook"] = plain["codebook"].T.contiguous().T
    torch.testing.assert_close(conditional_score(**strided), conditional_score(**plain))
    columns = dict(plain, logits=plain["logits"].T.contiguous().T)
    torch.testing.assert_close(conditional_score(**columns), conditional_score(**plain))
    alone = dict(plain, uncond_logits=plain["uncond_logits"][:1].expand(6, 64))
    own = dict(plain, uncond_logits=alone["uncond_logits"].contiguous())
    torch.testing.assert_close(conditional_score(**alone), conditional_score(**own))


@BACKENDS
def test_leading_shapes_and_broadcasting(backend: str) -> None:
    case = make_case(6, 64, 8, 3)
    flat = case.arguments(backend)
    wanted = conditional_score(**{**flat, "t": 0.4, "guidance_scale": 2.0})
    assert wanted.shape == (6, 3, 8)
    shaped = dict(flat, t=torch.tensor(0.4), guidance_scale=2.0)
    for name in ("logits", "uncond_logits", "x_t"):
        shaped[name] = flat[name].reshape(2, 3, *flat[name].shape[1:])
    torch.testing.assert_close(conditional_score(**shaped), wanted.reshape(2, 3, 3, 8))
    per_token = torch.full((3,), 2.0, device=wanted.device)
    torch.testing.assert_close(
        conditional_score(**{**shaped, "guidance_scale": per_token}), wanted.reshape(2, 3, 3, 8)
    )
    single = dict(flat, x_t=flat["x_t"][0, 0], t=0.4, guidance_scale=2.0)
    for name in ("logits", "uncond_logits"):
        single[name] = flat[name][0]
    torch.testing.assert_close(conditional_score(**single), wanted[0, 0], atol=1e-4, rtol=1e-4)


@BACKENDS
@pytest.mark.parametrize("shape", [(0, None), (4, 0), (0, 3)])
def test_no_tokens(backend: str, shape: tuple) -> None:
    arguments = make_case(shape[0], 20, 3, shape[1]).arguments(backend)
    x_t = arguments.pop("x_t").requires_grad_()
    score = conditional_score(x_t, **arguments)
    assert score.shape == x_t.shape
    score.sum().backward()
    assert x_t.grad.shape == x_t.shape


@BACKENDS
def test_float16_inputs_give_float32(backend: str) -> None:
    case = make_case(4, 30, 4, dtype=torch.float16)
    arguments = case.arguments(backend, torch.float16)
    arguments["x_t"] = arguments["x_t"].bfloat16()
    assert conditional_score(**arguments).dtype == torch.float32


@BACKENDS
def test_opcheck(backend: str) -> None:
    case = make_case(4, 30, 4, 2, top_k=10, top_p=0.9)
    a = case.arguments(backend)
    for uncond in (a["uncond_logits"], None):
        torch.library.opcheck(
            torch.ops.dd2_fast.conditional_x0.default,
            (a["x_t"].clone().requires_grad_(), a["t"], a["logits"], uncond, a["guidance_scale"],
             a["codebook"], 10, 0.9, backend),
        )  # fmt: skip


@BACKENDS
@COMPILERS
def test_compiles_without_graph_breaks(backend: str, compiler: str) -> None:
    arguments = make_case(12, 64, 4, 2, top_k=10).arguments(backend)
    x_t = arguments.pop("x_t")

    def loss(x: torch.Tensor) -> torch.Tensor:
        return conditional_score(x * 1.5, **arguments, prediction="velocity").square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend=compiler)
    eager_x, compiled_x = (x_t.clone().requires_grad_() for _ in range(2))
    torch.testing.assert_close(compiled(compiled_x), loss(eager_x))
    compiled(compiled_x).backward()
    loss(eager_x).backward()
    torch.testing.assert_close(compiled_x.grad, eager_x.grad)


@pytest.mark.parametrize("backend", runnable_backends(GPU_BACKENDS))
def test_cuda_graph(backend: str) -> None:
    arguments = make_case(32, 512, 8, top_k=50).arguments(backend)
    wanted = conditional_score(**arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = conditional_score(**arguments)
    captured.fill_(torch.nan)
    graph.replay()
    torch.testing.assert_close(captured, wanted)


def test_float64_stays_float64_by_default() -> None:
    case = make_case(3, 20, 2)
    arguments = case.arguments("float64")
    arguments["backend"] = None
    assert conditional_score(**arguments).dtype == torch.float64
    with pytest.raises(RuntimeError, match="'cpu' cannot run conditional_score.*float64"):
        conditional_score(**{**arguments, "backend": "cpu"})


BAD = {
    "x_t dim": ({"x_t": torch.zeros(4, 5)}, ValueError, r"x_t: expected shape .*got \[4, 5\]"),
    "x_t type": ({"x_t": [0.0]}, TypeError, "x_t: expected a torch.Tensor, got list"),
    "x_t dtype": ({"x_t": torch.zeros(4, 3, dtype=torch.int64)}, TypeError, "x_t.*got int64"),
    "logits dtype": ({"logits": torch.zeros(4, 9, dtype=torch.int32)}, TypeError, "logits.*int32"),
    "logits empty": ({"logits": torch.zeros(4, 0)}, ValueError, "logits: expected .* V >= 1"),
    "codebook": ({"codebook": torch.zeros(8, 3)}, ValueError, r"codebook.*V = 9.*got \[8, 3\]"),
    "uncond shape": ({"uncond_logits": torch.zeros(4, 8)}, ValueError, r"uncond_logits.*\[4, 8\]"),
    "uncond dtype": (
        {"uncond_logits": torch.zeros(4, 9).half()}, TypeError, "uncond_logits.*float32.*float16",
    ),
    "t zero": ({"t": 0.0}, ValueError, r"t: expected a noise level in \(0, 1\], got 0.0"),
    "t shape": ({"t": torch.ones(5)}, ValueError, r"t: expected .* broadcasts to \[4\], got \[5\]"),
    "t type": ({"t": "high"}, TypeError, "t: expected a number"),
    "t array": ({"t": np.array(0.5)}, TypeError, "t: .* torch.Tensor, got numpy.ndarray"),
    "t meta": ({"t": torch.tensor(0.5, device="meta")}, ValueError, "t: expected device cpu.*meta"),
    "scale shape": (
        {"uncond_logits": torch.zeros(4, 9), "guidance_scale": torch.ones(3)},
        ValueError, r"guidance_scale.*\[4\], got \[3\]",
    ),
    "scale alone": ({"guidance_scale": 2.0}, ValueError, "guidance_scale.*uncond_logits"),
    "scale type": ({"guidance_scale": "2"}, TypeError, "guidance_scale: .*number.*, got str"),
    "scale none": ({"guidance_scale": None}, TypeError, "guidance_scale: .*got NoneType"),
    "top_k": ({"top_k": -1}, ValueError, "top_k.*got -1"),
    "top_k type": ({"top_k": 1.5}, TypeError, "top_k: expected an int, got float"),
    "top_k bool": ({"top_k": True}, TypeError, "top_k: expected an int, got bool"),
    "top_k array": ({"top_k": np.arange(2)}, TypeError, "top_k: .*got numpy.ndarray"),
    "top_k tensor": ({"top_k": torch.tensor(5)}, TypeError, "top_k: .*got torch.Tensor"),
    "top_k size": ({"top_k": 2**70}, ValueError, f"top_k: expected .*64 bits, got {2**70}"),
    "top_p type": ({"top_p": np.True_}, TypeError, "top_p: expected a float, got numpy.bool"),
    "top_p": ({"top_p": 0.0}, ValueError, r"top_p: .*\(0, 1\], got 0.0"),
    "prediction": ({"prediction": "noise"}, ValueError, "prediction.*'velocity'.*got 'noise'"),
    "backend": ({"backend": "metal"}, ValueError, "backend.*'torch', got 'metal'"),
    "backend type": ({"backend": 3}, TypeError, "backend: expected a name or None, got int"),
    "device": ({"codebook": torch.zeros(9, 3, device="meta")}, ValueError, "codebook.*device cpu"),
    "gradient": (
        {"logits": torch.zeros(4, 9, requires_grad=True)}, ValueError, "logits: .*constant",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change,error,message", BAD.values(), ids=BAD.keys())
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {
        "x_t": torch.zeros(4, 3), "t": 0.5, "logits": torch.zeros(4, 9),
        "codebook": torch.zeros(9, 3),
    }  # fmt: skip
    conditional_score(**arguments)
    with pytest.raises(error, match=message):
        conditional_score(**{**arguments, **change})


def test_numpy_scalars() -> None:
    case = make_case(4, 30, 3)
    arguments = case.arguments("torch")
    plain = {"t": 0.5, "guidance_scale": 1.5, "top_k": 9, "top_p": 0.75}
    wanted = conditional_score(**{**arguments, **plain})
    for number, count in ((np.float32, np.int64), (np.float64, np.uint8), (Fraction, np.int32)):
        scalars = {name: number(value) for name, value in plain.items()} | {"top_k": count(9)}
        torch.testing.assert_close(conditional_score(**{**arguments, **scalars}), wanted)
