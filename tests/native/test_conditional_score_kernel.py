"""The CUDA kernel of the conditional score and of its epilogue, the CSD loss, run on the CPU by the
shim, against the float64 reference. Finds errors of logic; tests/compiled finds races."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from native.structs import Shim, teacher_rows, unaligned
from ops.cases import Case, make_case, relative_error
from pairwise import pairwise

from dd2_fast.ops import conditional_score
from dd2_fast.ops.conditional_score.native import ConditionalScoreParams, CsdLossParams
from dd2_fast.ops.csd_loss import reference


@pytest.fixture
def kernel(shim_of: Callable[[str], Shim]) -> Shim:
    return shim_of("conditional_score")


def run(
    kernel: Shim,
    arguments: dict,
    direction: torch.Tensor | None = None,
    csd: CsdLossParams | None = None,
    *,
    staged: bool,
    reverse_order: bool = False,
) -> torch.Tensor:
    """x0, or J direction, into an output poisoned with NaN; with `csd` whatever that asks for."""
    x_t, logits, codebook = (arguments[n] for n in ("x_t", "logits", "codebook"))
    tensors = {
        "x_t": x_t.contiguous(),
        "t": arguments["t"].contiguous(),
        "direction": None if direction is None else direction.contiguous(),
        "codebook": codebook,
    }
    scale = torch.as_tensor(arguments["guidance_scale"]).expand(len(logits)).contiguous().float()
    teacher = teacher_rows(
        logits, arguments["uncond_logits"], scale, arguments["top_k"], arguments["top_p"]
    )
    out = torch.full_like(x_t, torch.nan)
    output = {} if csd else {"out" if direction is None else "jacobian": out.data_ptr()}
    params = ConditionalScoreParams(
        teacher=teacher,
        **{name: 0 if value is None else value.data_ptr() for name, value in tensors.items()},
        draws=x_t.shape[1] if x_t.ndim == 3 else 1,
        dim=codebook.shape[1],
        csd=csd or CsdLossParams(),
        **output,
    )
    kernel.run(params, staged=staged, reverse_order=reverse_order)
    return out


# (rows, vocabulary, dim, draws, guided, top_k, top_p), each with the regime it covers
REGIMES = {
    "one_code": (1, 1, 1, None, False, 0, 1.0),
    "ragged": (3, 301, 5, None, True, 17, 0.9),
    "vector_loads": (2, 512, 8, 2, True, 100, 1.0),
    "no_filter": (2, 700, 32, None, True, 0, 1.0),
    "top_p_only": (2, 1000, 8, None, False, 0, 0.8),
    "two_dim_blocks": (2, 300, 40, 2, True, 60, 0.9),
    "var": (1, 4096, 32, None, True, 900, 0.95),
    "llamagen": (1, 16384, 8, None, True, 900, 1.0),
}


def exact(case: Case, direction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    arguments = case.arguments("float64")
    x_t = arguments.pop("x_t").requires_grad_()
    x0 = conditional_score(x_t, **arguments, prediction="x0")
    return x0.detach(), torch.autograd.grad(x0, x_t, direction.double())[0]


@pairwise(
    regime=REGIMES,
    dtype=[torch.float32, torch.bfloat16, torch.float16],
    staged={"staged": True, "streamed": False},
)
def test_matches_float64(kernel: Shim, regime: tuple, dtype: torch.dtype, staged: bool):
    rows, vocabulary, dim, draws, guided, top_k, top_p = regime
    case = make_case(rows, vocabulary, dim, draws, guided=guided, top_k=top_k, top_p=top_p,
                     dtype=dtype)  # fmt: skip
    arguments = case.arguments("torch", dtype)
    direction = torch.randn(case.x_t.shape)
    x0, gradient = exact(case, direction)
    assert relative_error(run(kernel, arguments, staged=staged), x0) < 2e-5
    computed = run(kernel, arguments, direction, staged=staged)
    assert (computed.double() - gradient).norm() < 1e-4 * gradient.norm() + 1e-5


def test_thread_order_changes_nothing(kernel: Shim) -> None:
    """A missing barrier that one order of the threads hides, the reverse order may show."""
    case = make_case(2, 600, 8, 2, top_k=90, top_p=0.9)
    arguments = case.arguments("torch")
    for staged in (True, False):
        forward = run(kernel, arguments, staged=staged)
        assert torch.equal(forward, run(kernel, arguments, staged=staged, reverse_order=True))


@pytest.mark.parametrize("staged", [True, False], ids=["staged", "streamed"])
@pytest.mark.parametrize("dim", [8, 32])
def test_unaligned_codebook(kernel: Shim, dim: int, staged: bool) -> None:
    case = make_case(2, 90, dim, top_k=30)
    arguments = case.arguments("torch")
    aligned = run(kernel, arguments, staged=staged)
    arguments["codebook"] = unaligned(arguments["codebook"])
    assert torch.equal(run(kernel, arguments, staged=staged), aligned)


@pytest.mark.parametrize("filters", [(7, 1.0), (0, 0.5), (250, 0.5), (0, 1e-6)])
def test_ties_equal_the_reference(kernel: Shim, filters: tuple[int, float]) -> None:
    case = make_case(4, 500, 4, guided=False, top_k=filters[0], top_p=filters[1], t=(0.5, 0.9))
    arguments = case.arguments("torch")
    arguments["logits"] = torch.tensor([0.0, -0.0, 1.5, -2.0, 3e4])[
        torch.randint(5, (4, 500), generator=torch.Generator().manual_seed(0))
    ]
    arguments["logits"][2:].clamp_(max=0)
    wanted = conditional_score(**arguments, prediction="x0")
    for staged in (True, False):
        torch.testing.assert_close(run(kernel, arguments, staged=staged), wanted, atol=1e-5, rtol=0)


def test_invalid_rows_are_nan_alone(kernel: Shim) -> None:
    case = make_case(7, 200, 6, 2, top_k=50)
    arguments = case.arguments("torch")
    arguments["logits"][0, 7] = torch.nan
    arguments["logits"][1] = -torch.inf
    arguments["logits"][2, 3] = torch.inf
    arguments["x_t"][3, 1, 2] = torch.nan
    arguments["t"][4, 0] = torch.nan
    wanted = conditional_score(**arguments, prediction="x0")
    for staged in (True, False):
        x0 = run(kernel, arguments, staged=staged)
        torch.testing.assert_close(x0, wanted, equal_nan=True, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("t", [1e-3, 1e-8, 1e-25, 1e-45])
def test_tiny_noise_is_the_nearest_code(kernel: Shim, t: float) -> None:
    case = make_case(3, 300, 8, t=(t, t))
    arguments = case.arguments("torch")
    arguments["t"] = torch.full_like(arguments["t"], t)
    nearest = torch.cdist(case.x_t / (1 - t), case.codebook).argmin(-1)
    x0 = run(kernel, arguments, staged=False)
    torch.testing.assert_close(x0, arguments["codebook"][nearest], atol=1e-5, rtol=0)
    assert run(kernel, arguments, torch.randn(3, 8), staged=True).isfinite().all()


def run_loss(
    kernel: Shim, arguments: dict, tokens: tuple, *settings: object, staged: bool
) -> list[torch.Tensor]:
    """The loss and its gradients, into outputs poisoned with NaN; arguments as the reference's."""
    x, fake, weight = tokens
    power, objective, alpha, wants_x_t = settings
    sid = objective == "sid"
    outputs = [torch.full(shape, torch.nan) for shape in (fake.shape[:-1], *[fake.shape] * 3)]
    wanted = (True, True, sid, sid and wants_x_t)
    addresses = [out.data_ptr() if w else 0 for out, w in zip(outputs, wanted, strict=True)]
    weight_address = 0 if weight is None else weight.data_ptr()
    csd = CsdLossParams(
        x.data_ptr(), fake.data_ptr(), weight_address, *addresses, alpha, not sid, power
    )
    draws = fake if fake.ndim == 3 else fake[:, None]
    direction = (draws - x[:, None]).reshape(fake.shape) if alpha == 1 and wanted[3] else None
    run(kernel, arguments, direction, csd, staged=staged)
    return [out for out, w in zip(outputs, wanted, strict=True) if w]


# (regime, weight_power, objective, alpha, wants_x_t)
LOSSES = {
    "alpha_one": ("ragged", 1.0, "sid", 1.0, True),
    "alpha_two": ("ragged", 0.0, "sid", 2.0, True),
    "draws": ("vector_loads", 0.75, "sid", 1.0, True),
    "no_jacobian": ("vector_loads", 0.0, "sid", 1.0, False),
    "wide_codes": ("two_dim_blocks", 1.0, "sid", 1.0, True),
    "dmd": ("two_dim_blocks", 1.0, "dmd", 1.0, False),
    "given_weight": ("no_filter", 0.0, "sid", 1.0, True),
    "one_code": ("one_code", 1.0, "sid", 1.0, True),
}


@pytest.mark.parametrize("staged", [True, False], ids=["staged", "streamed"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_matches_float64(kernel: Shim, name: str, staged: bool) -> None:
    regime, *settings = LOSSES[name]
    rows, vocabulary, dim, draws, guided, top_k, top_p = REGIMES[regime]
    case = make_case(rows, vocabulary, dim, draws, guided=guided, top_k=top_k, top_p=top_p)
    x, fake = torch.randn(rows, dim), torch.randn(case.x_t.shape)
    weight = torch.rand(case.t.shape) if name == "given_weight" else None
    count, scale = draws or 1, case.guidance_scale if guided else torch.ones(rows).double()
    exact_loss = reference.csd_loss(
        x.double(), fake.double().reshape(rows, count, dim),
        None if weight is None else weight.double().reshape(rows, count), *settings,
        case.x_t.reshape(rows, count, dim), case.t.reshape(rows, count), case.logits,
        case.uncond_logits, scale, case.codebook, top_k, top_p,
    )  # fmt: skip
    arguments = case.arguments("torch")
    computed = run_loss(kernel, arguments, (x, fake, weight), *settings, staged=staged)
    exact_values = [value for value in exact_loss if value.numel()]
    for value, wanted in zip(computed, exact_values, strict=True):
        wanted = wanted.reshape(value.shape)
        assert (value.double() - wanted).norm() < 1e-4 * wanted.norm() + 1e-5


def test_loss_of_invalid_rows_is_nan_alone(kernel: Shim) -> None:
    arguments = make_case(4, 200, 6, 2, top_k=50).arguments("torch")
    x, fake = torch.randn(4, 6), torch.randn(4, 2, 6)
    arguments["logits"][0, 7] = fake[1, 0, 2] = x[2, 3] = torch.nan
    for staged in (True, False):
        for value in run_loss(
            kernel, arguments, (x, fake, None), 1.0, "sid", 1.0, True, staged=staged
        ):
            bad = value.reshape(4, 2, -1).isnan().all(-1)
            assert bad.tolist() == [[True] * 2, [True, False], [True] * 2, [False] * 2]


@pytest.mark.parametrize("staged", [True, False], ids=["staged", "streamed"])
@pytest.mark.parametrize("dim", [7, 8, 32, 40])
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 300.0, 1000.0])
def test_far_tokens(kernel: Shim, scale: float, dim: int, staged: bool) -> None:
    """Budget: 2^-24 |x| |c| (1-t) / t^2 of the exponent; none of it at t = 1."""
    for t in (1.0, 0.97, 0.5):
        case = make_case(3, 200, dim, top_k=30, t=(t, t))
        case = replace(case, x_t=(scale * torch.randn(3, dim)).double())
        direction = torch.randn(3, dim)
        x0, gradient = exact(case, direction)
        arguments = case.arguments("torch")
        budget = 3e-6 + 4 * 2.0**-24 * dim * scale * (1 - t) / t**2
        assert relative_error(run(kernel, arguments, staged=staged), x0) < budget
        computed = run(kernel, arguments, direction, staged=staged)
        assert (computed - gradient).norm() < (1e-5 + 10 * budget) * gradient.norm() + 1e-7


@pytest.mark.parametrize("staged", [True, False], ids=["staged", "streamed"])
@pytest.mark.parametrize("offset", [100.0, 1000.0])
@pytest.mark.parametrize("t", [1.0, 0.9, 0.5, 0.05])
def test_far_codebooks(kernel: Shim, t: float, offset: float, staged: bool) -> None:
    """Budget: the additions of the weighted codes round to 2^-24 of the offset."""
    case = far_codebook(4, 32, t, offset, top_k=30)
    x0 = run(kernel, case.arguments("torch"), staged=staged)
    error = (x0 - exact(case, case.x_t)[0]).norm(dim=1).max() / 32**0.5
    assert error < 3e-6 + 16 * 2.0**-24 * offset


def far_codebook(rows: int, dim: int, t: float, offset: float, top_k: int = 0) -> Case:
    """Tokens noised from codes around ``offset``."""
    case = make_case(rows, 256, dim, top_k=top_k, t=(t, t))
    codebook = (offset + torch.randn(256, dim)).double()
    level = case.t[:, None]
    x_t = (1 - level) * codebook[:rows] + level * torch.randn(rows, dim)
    return replace(case, x_t=x_t.float().double(), codebook=codebook)
