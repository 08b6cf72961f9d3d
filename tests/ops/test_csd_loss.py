"""One set of tests for every backend of ``csd_loss``."""

from __future__ import annotations

from typing import Any

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
from torch import Tensor

from dd2_fast.ops import conditional_score, csd_loss

BACKENDS = pytest.mark.parametrize("backend", runnable_backends())
VARIABLES = ("x", "x_t", "fake_x0")

# (rows, vocabulary, dim, draws, guided, top_k, top_p), each with the regime it covers
REGIMES = {
    "one_code": (1, 1, 1, None, False, 0, 1.0),
    "ragged": (13, 101, 5, None, True, 17, 0.9),
    "dense_block_and_tail": (20, 333, 32, None, True, 0, 1.0),
    "dense_many_draws": (3, 129, 40, 30, False, 0, 1.0),
    "filtered_draws": (9, 2048, 8, 2, True, 300, 0.8),
    "wide_codes": (4, 64, 70, 2, True, 20, 0.95),
    "var": (64, 4096, 32, None, True, 900, 0.95),
    "llamagen": (16, 16384, 8, None, True, 900, 1.0),
}
# name of the loss: settings, "tensor" standing for a random weight
LOSSES: dict[str, dict[str, Any]] = {
    "paper": {},
    "unweighted": {"weight": "none"},
    "half_power": {"weight_power": 0.5},
    "negative_power": {"weight_power": -1.0},
    "given_weight": {"weight": "tensor"},
    "alpha_two": {"alpha": 2.0},
    "alpha_half": {"alpha": 0.5, "weight": "none"},
    "dmd": {"objective": "dmd"},
}
LOSS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def plain_loss(
    x: Tensor, fake_x0: Tensor, objective: str = "sid", alpha: float = 1.0,
    weight: str | Tensor = "sid", weight_power: float = 1.0, **teacher: Any,
) -> Tensor:  # fmt: skip
    """The loss by its definition, its gradients autograd's through ``conditional_score``."""
    teacher_x0 = conditional_score(**teacher, prediction="x0")
    x = x[..., None, :] if fake_x0.ndim > x.ndim else x
    if weight == "sid":
        weight = 1 / (x - teacher_x0).detach().abs().mean(-1).clamp(min=1e-5) ** weight_power
    elif weight == "none":
        weight = torch.ones(())
    if objective == "dmd":
        return weight * ((fake_x0 - teacher_x0).detach() * x).sum(-1)
    real_minus_fake = teacher_x0 - fake_x0
    return weight * (real_minus_fake * (teacher_x0 - x - alpha * real_minus_fake)).sum(-1)


def make_inputs(case: Case, backend: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments of ``csd_loss`` of one case; tokens off the codes by about their size."""
    arguments = case.arguments(backend, dtype)
    generator = torch.Generator().manual_seed(1)
    x_t = arguments["x_t"]

    def normal(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=generator).to(x_t)

    arguments["fake_x0"] = normal(x_t.shape)
    arguments["x"] = normal(torch.Size([x_t.shape[0], x_t.shape[-1]]))
    return arguments


def settings_of(loss: dict[str, Any], like: Tensor) -> dict[str, Any]:
    if loss.get("weight") != "tensor":
        return loss
    weight = torch.rand(like.shape[:-1], generator=torch.Generator().manual_seed(2)) + 0.1
    return {**loss, "weight": weight.to(like)}


def value_and_gradients(function: Any, arguments: dict[str, Any]) -> list[Tensor]:
    """The loss and its gradients in x, x_t and fake_x0 under random incoming gradients."""
    leaves = {name: arguments[name].clone().requires_grad_() for name in VARIABLES}
    loss = function(**{**arguments, **leaves})
    incoming = torch.randn(loss.shape, generator=torch.Generator().manual_seed(3)).to(loss)
    gradients = torch.autograd.grad(
        loss, list(leaves.values()), incoming, allow_unused=True, materialize_grads=True
    )
    return [loss.detach(), *gradients]


def regime_case(regime: tuple, **options: Any) -> Case:
    rows, vocabulary, dim, draws, guided, top_k, top_p = regime
    filters = {"guided": guided, "top_k": top_k, "top_p": top_p}
    return make_case(rows, vocabulary, dim, draws, **filters, **options)


@pytest.mark.parametrize("draws", [None, 3])
@pytest.mark.parametrize("alpha", [1.0, 1.2])
@pytest.mark.parametrize("weight", ["none", "tensor"])
def test_reference_gradcheck(draws: int | None, alpha: float, weight: str) -> None:
    case = make_case(5, 50, 4, draws, top_k=20, top_p=0.9, t=(0.2, 1.0))
    arguments = make_inputs(case, "float64")
    settings = settings_of({"alpha": alpha, "weight": weight}, arguments["x_t"])
    leaves = [arguments.pop(name).requires_grad_() for name in VARIABLES]
    assert torch.autograd.gradcheck(
        lambda x, x_t, fake: csd_loss(x, x_t, fake_x0=fake, **arguments, **settings), leaves
    )


@pairwise_with_backends(loss=LOSSES, regime=REGIMES)
def test_matches_autograd_of_definition(backend: str, loss: dict, regime: tuple) -> None:
    """Budget: 1e-4 for the loss and 1e-3 for every gradient from t = 0.02 on."""
    case = regime_case(regime)
    exact = make_inputs(case, "float64")
    settings = settings_of(loss, exact["x_t"])
    wanted = value_and_gradients(plain_loss, {**exact, **settings})
    arguments = make_inputs(case, backend)
    settings = settings_of(loss, arguments["x_t"])
    computed = value_and_gradients(csd_loss, {**arguments, **settings})
    assert computed[0].dtype == torch.float32
    for value, right, tolerance in zip(computed, wanted, (1e-4, 1e-3, 1e-3, 1e-3), strict=True):
        assert value.shape == right.shape
        assert relative_error(value, right) < tolerance or right.norm() < 1e-6


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_low_precision_logits(backend: str, dtype: torch.dtype) -> None:
    case = make_case(12, 500, 8, 2, top_k=60, top_p=0.9, dtype=dtype)
    wanted = value_and_gradients(plain_loss, make_inputs(case, "float64"))
    computed = value_and_gradients(csd_loss, make_inputs(case, backend, dtype))
    for value, right in zip(computed, wanted, strict=True):
        assert relative_error(value, right) < 1e-4


@BACKENDS
@pytest.mark.parametrize("alpha", [1.0, 2.0])
@pytest.mark.parametrize("dim", [8, 32])
def test_error_at_noise_level(backend: str, dim: int, alpha: float) -> None:
    """Budget as above, for J at t = 0.02 with 8 dimensions only: with 32, a token whose own code is
    filtered out is so far from the others that rounding its distances to float32 costs more."""
    for t in (0.02, 0.05, 0.3, 1.0):
        case = make_case(64, 4096, dim, top_k=900, top_p=0.95, t=(t, t), seed=int(t * 100))
        wanted = value_and_gradients(plain_loss, {**make_inputs(case, "float64"), "alpha": alpha})
        arguments = {**make_inputs(case, backend), "alpha": alpha}
        computed = value_and_gradients(csd_loss, arguments)
        budget = (1e-4, 1e-3, 1e-2 if t == 0.02 and dim == 32 else 1e-3, 1e-3)
        for value, right, tolerance in zip(computed, wanted, budget, strict=True):
            slack = 1e-5 * right.numel() ** 0.5
            assert (value.cpu() - right).norm() < tolerance * right.norm() + slack


@BACKENDS
def test_smallest_distance_bounds_the_weight(backend: str) -> None:
    """A token on D itself gets the weight 1e5, not infinity."""
    case = make_case(6, 1, 4, guided=False)
    arguments = make_inputs(case, backend)
    arguments["x"] = arguments["codebook"].expand(6, 4).clone()
    difference = arguments["x"] - arguments["fake_x0"]
    loss, grad_x, *_ = value_and_gradients(csd_loss, arguments)
    torch.testing.assert_close(loss, -1e5 * difference.square().sum(-1))
    assert grad_x.isfinite().all()


@BACKENDS
@LOSS
def test_only_asked_gradients(backend: str, loss: dict) -> None:
    """The value and the other gradients do not depend on which gradients are wanted."""
    case = make_case(7, 60, 5, 2, top_k=20)
    arguments = make_inputs(case, backend)
    arguments |= settings_of(loss, arguments["x_t"])
    value, *gradients = value_and_gradients(csd_loss, arguments)
    with torch.no_grad():
        torch.testing.assert_close(csd_loss(**arguments), value, rtol=1e-5, atol=1e-5)
    incoming = torch.randn(value.shape, generator=torch.Generator().manual_seed(3)).to(value)
    for name, gradient in zip(VARIABLES, gradients, strict=True):
        leaf = arguments[name].clone().requires_grad_()
        alone = csd_loss(**{**arguments, name: leaf})
        assert alone.requires_grad == (name == "x" or "objective" not in loss)
        if alone.requires_grad:
            (computed,) = torch.autograd.grad(alone, leaf, incoming)
            torch.testing.assert_close(computed, gradient, rtol=1e-4, atol=1e-5)


@BACKENDS
@pytest.mark.parametrize("filters", [{}, {"top_k": 30}], ids=["dense", "filtered"])
@pytest.mark.parametrize("loss", [{}, {"objective": "dmd"}], ids=["sid", "dmd"])
def test_invalid_tokens_are_nan_alone(backend: str, filters: dict, loss: dict) -> None:
    case = make_case(7, 200, 6, 2, **filters)
    clean = value_and_gradients(csd_loss, {**make_inputs(case, backend), **loss})
    arguments = {**make_inputs(case, backend), **loss}
    arguments["logits"][1, 7] = torch.nan
    arguments["logits"][2] = -torch.inf
    arguments["x_t"][3, 1, 2] = torch.nan
    arguments["fake_x0"][4, 0, 3] = torch.nan
    arguments["x"][5, 0] = torch.nan
    arguments["t"][6, 0] = torch.nan
    computed = value_and_gradients(csd_loss, arguments)
    bad = torch.zeros(7, 2, dtype=torch.bool)
    bad[[1, 2, 5]] = True
    bad[3, 1] = bad[4, 0] = bad[6, 0] = True
    assert computed[0][bad].isnan().all()
    for value, right in zip(computed, clean, strict=True):
        good = ~bad if value.shape[:2] == bad.shape else ~bad.any(1)
        torch.testing.assert_close(value[good], right[good])


@BACKENDS
def test_shapes_strides_and_broadcasts(backend: str) -> None:
    case = make_case(12, 64, 8, 3, top_k=20)
    flat = make_inputs(case, backend)
    wanted = value_and_gradients(csd_loss, {**flat, "weight": "none"})
    shaped = {
        name: value.unflatten(0, (3, 4)) if name not in ("codebook",) else value
        for name, value in flat.items()
        if isinstance(value, Tensor)
    }
    for name in ("x", "x_t", "fake_x0"):
        shaped[name] = shaped[name].transpose(0, 1).contiguous().transpose(0, 1)
        assert not shaped[name].is_contiguous()
    weight = torch.ones(1, 4, 1, device=flat["x"].device)
    computed = value_and_gradients(csd_loss, {**flat, **shaped, "weight": weight})
    assert computed[0].shape == (3, 4, 3)
    for value, right in zip(computed, wanted, strict=True):
        torch.testing.assert_close(value.reshape(right.shape), right, rtol=1e-5, atol=1e-5)


@BACKENDS
@pytest.mark.parametrize("shape", [(0,), (2, 0)])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_no_rows(backend: str, shape: tuple[int, ...], alpha: float) -> None:
    device = device_of(backend)
    x, x_t, fake = (torch.zeros(*shape, 4, device=device, requires_grad=True) for _ in range(3))
    logits, codebook = torch.zeros(*shape, 9, device=device), torch.zeros(9, 4, device=device)
    loss = csd_loss(x, x_t, 0.5, fake, logits, codebook, alpha=alpha, backend=backend)
    assert loss.shape == shape
    loss.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape


@BACKENDS
def test_opcheck(backend: str) -> None:
    a = make_inputs(make_case(4, 30, 4, 2, top_k=10, top_p=0.9), backend)
    x, x_t, fake = (a[name].clone().requires_grad_() for name in VARIABLES)
    teacher = (a["t"], a["logits"], a["uncond_logits"], a["guidance_scale"], a["codebook"], 10, 0.9)
    for settings in (
        (None, 1.0, "sid", 1.0, True),
        (torch.rand_like(a["t"]), 0.0, "sid", 2.0, True),
        (None, 0.0, "sid", 1.0, False),
        (None, True, "dmd", 1.0, False),
    ):
        tokens = x_t if settings[-1] else x_t.detach()
        guess = fake.detach() if settings[2] == "dmd" else fake
        torch.library.opcheck(
            torch.ops.dd2_fast.csd_loss.default, (x, guess, *settings, tokens, *teacher, backend)
        )


@BACKENDS
@COMPILERS
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_compiles_without_graph_breaks(backend: str, compiler: str, alpha: float) -> None:
    arguments = make_inputs(make_case(12, 64, 4, 2, top_k=10), backend)

    def function(**inputs: Any) -> Tensor:
        inputs["x_t"] = inputs["x_t"] * 1.5
        return csd_loss(**inputs, alpha=alpha) * 2

    wanted = value_and_gradients(function, arguments)
    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    computed = value_and_gradients(compiled, arguments)
    for value, right in zip(computed, wanted, strict=True):
        torch.testing.assert_close(value, right)


@BACKENDS
@pytest.mark.parametrize("variable", VARIABLES)
def test_other_derivatives_are_refused(backend: str, variable: str) -> None:
    arguments = make_inputs(make_case(3, 20, 2), backend)
    value = arguments.pop(variable)

    def loss(v: Tensor) -> Tensor:
        return csd_loss(**arguments, **{variable: v})[:, None] * torch.ones_like(v)

    assert_once_differentiable("csd_loss", loss, value)


@BACKENDS
def test_backward_reads_no_logits(backend: str) -> None:
    """What forward keeps for backward is of the size of the tokens, not of the logits."""
    arguments = make_inputs(make_case(6, 500, 4, 2), backend)
    leaves = {name: arguments[name].requires_grad_() for name in VARIABLES}
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        csd_loss(**{**arguments, **leaves})
    assert saved and all(tensor.numel() <= arguments["x_t"].numel() for tensor in saved)


@pytest.mark.parametrize("backend", runnable_backends(GPU_BACKENDS))
def test_cuda_graph(backend: str) -> None:
    arguments = make_inputs(make_case(32, 512, 8, top_k=50), backend)
    wanted = csd_loss(**arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = csd_loss(**arguments)
    captured.fill_(torch.nan)
    graph.replay()
    torch.testing.assert_close(captured, wanted)


def test_float64_is_refused_by_compiled_backends() -> None:
    arguments = make_inputs(make_case(3, 20, 2), "float64")
    assert csd_loss(**{**arguments, "backend": None}).dtype == torch.float64
    with pytest.raises(RuntimeError, match="'cpu' cannot run csd_loss.*float64"):
        csd_loss(**{**arguments, "backend": "cpu"})


BAD = {
    "x shape": ({"x": torch.zeros(4, 2, 3)}, ValueError, r"x: expected .*\[4, 3\].*\[4, 2, 3\]"),
    "x type": ({"x": 1.0}, TypeError, "x: expected a torch.Tensor, got float"),
    "x_t shape": ({"x_t": torch.zeros(5, 3)}, ValueError, r"x_t: expected shape .*got \[5, 3\]"),
    "fake shape": ({"fake_x0": torch.zeros(4, 2)}, ValueError, r"fake_x0: .*\[4, 3\].*\[4, 2\]"),
    "fake dtype": ({"fake_x0": torch.zeros(4, 3).long()}, TypeError, "fake_x0.*got int64"),
    "fake device": ({"fake_x0": torch.zeros(4, 3, device="meta")}, ValueError, "fake_x0.*cpu"),
    "t": ({"t": 1.5}, ValueError, r"t: .*\(0, 1\], got 1.5"),
    "objective": ({"objective": "kl"}, ValueError, "objective.*'dmd', got 'kl'"),
    "alpha": ({"alpha": float("nan")}, ValueError, "alpha: expected a finite number, got nan"),
    "alpha type": ({"alpha": "1"}, TypeError, "alpha: expected a number, got str"),
    "weight": ({"weight": "half"}, ValueError, "weight: .*'none' or a tensor, got 'half'"),
    "weight shape": ({"weight": torch.ones(3)}, ValueError, r"weight: .*\[4\], got \[3\]"),
    "weight gradient": (
        {"weight": torch.ones(4, requires_grad=True)}, ValueError, "weight: .*constant",
    ),
    "t gradient": ({"t": torch.ones(4, requires_grad=True)}, ValueError, "t: .*constant"),
    "logits gradient": (
        {"logits": torch.zeros(4, 9, requires_grad=True)}, ValueError, "logits: .*constant",
    ),
    "codebook gradient": (
        {"codebook": torch.zeros(9, 3, requires_grad=True)}, ValueError, "codebook: .*constant",
    ),
    "scale gradient": (
        {"uncond_logits": torch.zeros(4, 9), "guidance_scale": torch.ones(4, requires_grad=True)},
        ValueError, "guidance_scale: .*constant",
    ),
    "top_k": ({"top_k": -1}, ValueError, "top_k.*got -1"),
    "backend": ({"backend": "metal"}, ValueError, "backend.*'torch', got 'metal'"),
}  # fmt: skip


@pytest.mark.parametrize("change,error,message", BAD.values(), ids=BAD.keys())
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {
        "x": torch.zeros(4, 3), "x_t": torch.zeros(4, 3), "t": 0.5, "fake_x0": torch.zeros(4, 3),
        "logits": torch.zeros(4, 9), "codebook": torch.zeros(9, 3),
    }  # fmt: skip
    csd_loss(**arguments)
    with pytest.raises(error, match=message):
        csd_loss(**{**arguments, **change})
