"""The tensor-core kernel of the conditional score and the kernels around it, run on the CPU by the
shim with tensor cores' fragment layouts and cut-off sums, against the float64 reference."""

from __future__ import annotations

import mmap
from dataclasses import replace
from itertools import product

import pytest
import torch
from native.structs import Shim, unaligned
from native.test_conditional_score_kernel import LOSSES, exact, far_codebook, run, run_loss
from native.test_plans import workspace_size
from ops.cases import Case, make_case, relative_error
from pairwise import pairwise
from torch import Tensor

from dd2_fast.ops import conditional_score
from dd2_fast.ops.conditional_score.native import ConditionalScoreParams
from dd2_fast.ops.csd_loss import reference

LONGEST_WITH_JACOBIAN = 32  # codes for which the launcher takes the kernel with J u
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MODELS = {"var": torch.bfloat16, "llamagen": torch.float16}  # seconds with each dtype


class DenseShim(Shim):
    """The same, given a workspace: by tensor cores."""

    def run(
        self, params: ConditionalScoreParams, *, staged: bool = True, processors: int = 1,
        reverse_order: bool = False,
    ) -> None:  # fmt: skip
        size = workspace_size(params)
        # NaNs, and a line more, to show writes past the end.
        memory = torch.full((size + 256,), 255, dtype=torch.uint8)
        start = -memory.data_ptr() % 128
        params.workspace = memory.data_ptr() + start
        super().run(params, staged=staged, processors=processors, reverse_order=reverse_order)
        rest = torch.cat([memory[:start], memory[start + size :]])
        assert (rest == 255).all(), "a kernel wrote past the workspace"


@pytest.fixture(scope="session")
def kernel() -> DenseShim:
    return DenseShim("conditional_score")


# (rows, vocabulary, dim, draws, guided, top_k, top_p), each with the regime it covers
REGIMES = {
    "one_code": (1, 1, 1, None, False, 0, 1.0),
    "ragged": (3, 301, 5, None, True, 17, 0.9),
    "vector_loads": (70, 512, 8, None, True, 0, 1.0),
    "several_blocks": (130, 96, 16, None, False, 0, 1.0),
    "draws": (9, 200, 32, 9, True, 0, 1.0),
    "draws_filtered": (9, 256, 8, 9, True, 100, 1.0),
    "odd_dim": (20, 160, 33, 3, True, 60, 0.9),
    "widest": (40, 320, 64, None, True, 0, 1.0),
    "top_p_only": (20, 1000, 8, None, False, 0, 0.8),
    "totals": (5, 2100, 16, None, True, 0, 1.0),
    "var": (17, 4096, 32, None, True, 900, 0.95),
    "llamagen": (2, 16384, 8, None, True, 8000, 1.0),
}


@pytest.mark.parametrize(
    ("regime", "dtype"),
    [
        pytest.param(
            regime, dtype, id=f"{name}-{str(dtype)[6:]}",
            marks=[pytest.mark.long] * (MODELS.get(name, dtype) != dtype),
        )
        for (name, regime), dtype in product(REGIMES.items(), DTYPES)
    ],
)  # fmt: skip
def test_matches_float64(kernel: Shim, regime: tuple, dtype: torch.dtype) -> None:
    rows, vocabulary, dim, draws, guided, top_k, top_p = regime
    case = make_case(rows, vocabulary, dim, draws, guided=guided, top_k=top_k, top_p=top_p,
                     dtype=dtype)  # fmt: skip
    arguments = case.arguments("torch", dtype)
    direction = torch.randn(case.x_t.shape)
    x0, gradient = exact(case, direction)
    assert relative_error(run(kernel, arguments, staged=True), x0) < 2e-5
    if dim > LONGEST_WITH_JACOBIAN:
        return
    computed = run(kernel, arguments, direction, staged=False)
    assert (computed.double() - gradient).norm() < 1e-3 * gradient.norm() + 1e-4


def clustered_case(
    dim: int, spread: float, t: tuple[float, float], centre: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Case:  # fmt: skip
    """Codes in clusters of 16 whose members are ``spread`` apart, around ``centre``."""
    case = make_case(48, 1024, dim, guided=False, t=t, dtype=dtype)
    centres = torch.randn(64, dim).repeat_interleave(16, 0) + centre
    codebook = (centres + spread * torch.randn(1024, dim)).double()
    clean = codebook[torch.randint(1024, (48,))]
    noise_level = case.t[:, None]
    x_t = (1 - noise_level) * clean + noise_level * torch.randn(48, dim)
    return replace(case, x_t=x_t.float().double(), codebook=codebook)


@pairwise(
    spread=[0.002, 0.01, 0.03],
    dim=[8, 32, 64],
    t={"least": (0.02, 0.02), "little": (0.02, 0.05), "some": (0.05, 0.3), "much": (0.3, 1.0)},
)
def test_clustered_codes(kernel: Shim, dim: int, spread: float, t: tuple[float, float]) -> None:
    """Where the expanded distance cancels most. J u of codes much closer than the noise is a
    difference of nearly equal sums, of which eager float32 loses as much."""
    assert_as_exact_as_eager(kernel, clustered_case(dim, spread, t), torch.float32, 5e-5)


def assert_as_exact_as_eager(
    kernel: Shim, case: Case, dtype: torch.dtype, error_of_x0: float
) -> None:
    arguments, direction = case.arguments("torch", dtype), torch.randn(case.x_t.shape)
    x0, gradient = exact(case, direction)
    assert relative_error(run(kernel, arguments, staged=False), x0) < error_of_x0
    if case.x_t.shape[-1] > LONGEST_WITH_JACOBIAN:
        return
    x_t = arguments.pop("x_t").requires_grad_()
    eager = conditional_score(x_t, **arguments, prediction="x0")
    eager_gradient = torch.autograd.grad(eager, x_t, direction)[0]
    computed = run(kernel, {**arguments, "x_t": x_t.detach()}, direction, staged=False)
    allowed = 1e-3 * gradient.norm() + 2 * (eager_gradient - gradient).norm() + 1e-3
    assert (computed.double() - gradient).norm() < allowed


@pytest.mark.parametrize("centre", [3.0, 20.0, 300.0])
def test_codes_far_from_zero(kernel: Shim, centre: float) -> None:
    case = clustered_case(32, 0.01, (0.02, 0.1), centre)
    x0 = run(kernel, case.arguments("torch"), staged=False)
    assert relative_error(x0, exact(case, case.x_t)[0]) < 5e-5


@pytest.mark.parametrize("dim", [8, 33, 64])
@pytest.mark.parametrize("offset", [100.0, 1000.0])
@pytest.mark.parametrize("t", [1.0, 0.9, 0.5, 0.05])
def test_codebooks_whose_products_would_be_rounded(
    kernel: Shim, t: float, offset: float, dim: int
) -> None:
    case = far_codebook(40, dim, t, offset)
    x0 = run(kernel, case.arguments("torch"), staged=False)
    error = (x0 - exact(case, case.x_t)[0]).norm(dim=1).max() / dim**0.5
    assert error < 1e-5 + 4 * 2.0**-24 * offset


@pairwise(dim=[8, 32, 64], scale=[1.0, 10.0, 100.0, 300.0, 1000.0], t=[1.0, 0.999, 0.95, 0.5])
def test_far_tokens(kernel: Shim, t: float, scale: float, dim: int) -> None:
    """Budget: 2^-22 |x| |c| (1-t) / t^2 of the exponent, whose products are of 22 bits."""
    case = make_case(48, 256, dim, t=(t, t))
    case = replace(case, x_t=(scale * torch.randn(48, dim)).double())
    x0 = run(kernel, case.arguments("torch"), staged=False)
    budget = 1e-5 + 2.0**-20 * dim * scale * (1 - t) / t**2
    assert relative_error(x0, exact(case, case.x_t)[0]) < budget


def test_long_sums_lose_nothing(kernel: Shim) -> None:
    """Equal weights of codes with one sign: what every addition cuts off adds up."""
    case = make_case(2, 16384, 8, guided=False, t=(0.9, 0.9))
    case = replace(case, logits=0 * case.logits, codebook=case.codebook.float().double() + 4)
    x0 = run(kernel, case.arguments("torch"), staged=False)
    assert relative_error(x0, exact(case, case.x_t)[0]) < 1e-5


@pytest.mark.parametrize("top_k", [0, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_any_stride_and_alignment(kernel: Shim, dtype: torch.dtype, top_k: int) -> None:
    """Rows that begin at odd elements, and one unconditional row for all."""
    case = make_case(20, 131, 6, top_k=top_k, dtype=dtype)
    arguments = case.arguments("torch", dtype)
    assert case.uncond_logits is not None
    case = replace(case, uncond_logits=case.uncond_logits[:1].expand(20, -1))
    padded = torch.full((20, 139), torch.nan, dtype=dtype)
    padded[:, 3:134] = arguments["logits"]
    arguments["logits"] = padded[:, 3:134]
    arguments["uncond_logits"] = arguments["uncond_logits"][:1].expand(20, -1)
    x0 = exact(case, case.x_t)[0]
    assert relative_error(run(kernel, arguments, staged=True), x0) < 2e-5


@pytest.mark.parametrize("name", ["uncond_logits", "codebook", "x_t"])
def test_one_unaligned_tensor(kernel: Shim, name: str) -> None:
    case = make_case(20, 128, 8)
    arguments = case.arguments("torch")
    arguments[name] = unaligned(arguments[name])
    x0 = run(kernel, arguments, staged=False)
    assert relative_error(x0, exact(case, case.x_t)[0]) < 2e-5


def test_rows_that_begin_beyond_64_gib(kernel: Shim) -> None:
    """More 16-byte loads from the first row than 32 bits count."""
    stride = 2**34 + 8
    case = make_case(2, 64, 6, guided=False)
    arguments = case.arguments("torch")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    try:
        memory = mmap.mmap(-1, 4 * (stride + 64), flags=flags)
    except OSError as error:
        pytest.skip(f"no address space of 64 GiB: {error}")
    logits = torch.frombuffer(memory, dtype=torch.float32).as_strided((2, 64), (stride, 1))
    arguments["logits"] = logits.copy_(arguments["logits"])
    x0 = run(kernel, arguments, staged=False)
    assert relative_error(x0, exact(case, case.x_t)[0]) < 2e-5


def test_thread_order_changes_nothing(kernel: Shim) -> None:
    """A missing barrier that one order of the threads hides, the reverse order may show."""
    for top_k in (0, 90):
        case = make_case(70, 320, 20, top_k=top_k, t=(0.0, 1.0))
        arguments, direction = case.arguments("torch"), torch.randn(case.x_t.shape)
        forward = run(kernel, arguments, direction, staged=True)
        reverse = run(kernel, arguments, direction, staged=True, reverse_order=True)
        assert torch.equal(forward, reverse)


@pytest.mark.parametrize("filters", [(0, 1.0), (7, 1.0), (0, 0.5), (250, 0.5), (0, 1e-6)])
def test_ties_equal_the_reference(kernel: Shim, filters: tuple[int, float]) -> None:
    case = make_case(4, 500, 4, guided=False, top_k=filters[0], top_p=filters[1], t=(0.5, 0.9))
    arguments = case.arguments("torch")
    arguments["logits"] = torch.tensor([0.0, -0.0, 1.5, -2.0, 3e4])[torch.randint(5, (4, 500))]
    arguments["logits"][2:].clamp_(max=0)
    wanted = conditional_score(**arguments, prediction="x0")
    # Unfiltered, scores near a first code's lose digits where a logit 3e4 larger comes.
    atol = 1e-5 if case.top_k or case.top_p < 1 else 1e-4
    torch.testing.assert_close(run(kernel, arguments, staged=True), wanted, atol=atol, rtol=0)


@pytest.mark.parametrize("top_k", [0, 50])
@pytest.mark.parametrize("scale", [2.0, 1.0, 0.0, -1.5])
def test_ruled_out_codes(kernel: Shim, scale: float, top_k: int) -> None:
    """-inf in either row, whatever the scale makes of it; whole tiles, the first ones too."""
    arguments = make_case(24, 400, 6, top_k=top_k).arguments("torch")
    arguments["guidance_scale"] = scale
    cond, uncond = arguments["logits"], arguments["uncond_logits"]
    cond[torch.rand(cond.shape) < 0.2] = -torch.inf
    uncond[torch.rand(cond.shape) < 0.2] = -torch.inf
    cond[3, :390] = uncond[4, :100] = cond[5, 64:] = -torch.inf
    wanted = conditional_score(**arguments, prediction="x0")
    torch.testing.assert_close(run(kernel, arguments, staged=True), wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("top_k", [0, 50])
def test_invalid_rows_are_nan_alone(kernel: Shim, top_k: int) -> None:
    arguments = make_case(9, 200, 6, 2, top_k=top_k).arguments("torch")
    arguments["logits"][0, 7] = torch.nan
    arguments["logits"][1] = -torch.inf
    arguments["logits"][2, 3] = torch.inf
    arguments["x_t"][3, 1, 2] = torch.nan
    arguments["t"][4, 0] = torch.nan
    arguments["logits"][5, 199] = torch.nan
    wanted = conditional_score(**arguments, prediction="x0")
    x0 = run(kernel, arguments, staged=True)
    torch.testing.assert_close(x0, wanted, equal_nan=True, atol=2e-5, rtol=1e-5)
    direction = torch.randn(x0.shape)
    direction[6, 1, 0] = torch.nan
    along = run(kernel, arguments, direction, staged=True)
    invalid = wanted.isnan()
    invalid[6, 1] = True
    assert torch.equal(along.isnan(), invalid)


@pytest.mark.parametrize("top_k", [0, 50])
def test_tiny_noise_in_a_block_of_others(kernel: Shim, top_k: int) -> None:
    case = make_case(100, 300, 12, top_k=top_k)
    for i, t in enumerate((0.0199, 1e-3, 1e-8, 1e-25, 1e-45)):
        case.t[7 * i] = t
    case = replace(case, t=case.t.float().double())
    arguments, direction = case.arguments("torch"), torch.randn(case.x_t.shape)
    x0, gradient = exact(case, direction)
    computed = run(kernel, arguments, staged=True)
    assert relative_error(computed, x0) < 2e-5
    assert relative_error(computed[:35:7], x0[:35:7]) < 2e-5
    assert run(kernel, arguments, direction, staged=True).isfinite().all()


@pairwise(
    dim=[6, 32, 40],  # one pass of 8 dimensions, of 32, two of 32
    dtype=DTYPES,
    top_k=[0, 400],
)
def test_little_noise_takes_direct_differences(
    kernel: Shim, dim: int, dtype: torch.dtype, top_k: int
) -> None:
    """What they keep, the expanded distance has lost: codes as far apart as the noise."""
    case = replace(clustered_case(dim, 0.003, (0.002, 0.0199), dtype=dtype), top_k=top_k)
    assert_as_exact_as_eager(kernel, case, dtype, 2e-6)


@pytest.mark.parametrize("size", [1e-12, 1e-4, 1e3])
def test_any_size_of_codes_and_direction(kernel: Shim, size: float) -> None:
    """Halves reach from 6e-8 to 65504: what they hold is scaled."""
    case = make_case(33, 150, 9, t=(0.5, 1.0))
    case = replace(case, codebook=(case.codebook * size).float().double())
    direction = (torch.randn(case.x_t.shape) / size).contiguous()
    x0, gradient = exact(case, direction)
    arguments = case.arguments("torch")
    assert relative_error(run(kernel, arguments, staged=False), x0) < 2e-5
    assert relative_error(run(kernel, arguments, direction, staged=False), gradient) < 1e-3


def test_logits_far_from_zero(kernel: Shim) -> None:
    case = make_case(20, 300, 8, guided=False)
    arguments = case.arguments("torch")
    arguments["logits"] = arguments["logits"].add(2e4)
    arguments["logits"][7] -= 4e4
    case = replace(case, logits=arguments["logits"].double())
    x0 = run(kernel, arguments, staged=False)
    assert relative_error(x0, exact(case, case.x_t)[0]) < 2e-5


def exact_loss(case: Case, tokens: tuple[Tensor, Tensor, Tensor | None], *settings: object) -> list:
    x, fake, weight = tokens
    rows, dim = x.shape
    count, scale = fake.numel() // x.numel(), case.guidance_scale
    values = reference.csd_loss(
        x.double(), fake.double().reshape(rows, count, dim),
        None if weight is None else weight.double().reshape(rows, count), *settings,
        case.x_t.reshape(rows, count, dim), case.t.reshape(rows, count), case.logits,
        case.uncond_logits, scale, case.codebook, case.top_k, case.top_p,
    )  # fmt: skip
    return [value for value in values if value.numel()]


@pytest.mark.parametrize("top_k", [0, 60])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_matches_float64(kernel: Shim, name: str, top_k: int) -> None:
    _, *settings = LOSSES[name]
    case = make_case(11, 200, 20, 3 if name == "draws" else None, top_k=top_k, t=(0.0, 1.0))
    x, fake = torch.randn(11, 20), torch.randn(case.x_t.shape)
    weight = torch.rand(case.t.shape) if name == "given_weight" else None
    wanted = exact_loss(case, (x, fake, weight), *settings)
    arguments = case.arguments("torch")
    computed = run_loss(kernel, arguments, (x, fake, weight), *settings, staged=True)
    assert len(computed) == len(wanted)
    for value, exact_value in zip(computed, wanted, strict=True):
        exact_value = exact_value.reshape(value.shape)
        assert (value.double() - exact_value).norm() < 1e-4 * exact_value.norm() + 1e-4


def test_loss_of_invalid_rows_is_nan_alone(kernel: Shim) -> None:
    arguments = make_case(4, 200, 6, 2, top_k=50).arguments("torch")
    x, fake = torch.randn(4, 6), torch.randn(4, 2, 6)
    arguments["logits"][0, 7] = fake[1, 0, 2] = x[2, 3] = torch.nan
    for value in run_loss(kernel, arguments, (x, fake, None), 1.0, "sid", 1.0, True, staged=True):
        bad = value.reshape(4, 2, -1).isnan().any(-1)
        assert bad.tolist() == [[True] * 2, [True, False], [True] * 2, [False] * 2]
