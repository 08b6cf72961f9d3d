"""The CUDA kernel of the draw, run on the CPU by the shim, against the reference."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
from native.structs import Shim, teacher_rows
from ops.cases import make_case
from ops.test_philox import KNOWN

from dd2_fast.ops import philox, sample_code
from dd2_fast.ops.sample_code.native import SampleCodeParams

STAGED = pytest.mark.parametrize("staged", [True, False], ids=["staged", "streamed"])
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:]
)


@pytest.fixture
def kernel(shim_of: Callable[[str], Shim]) -> Shim:
    return shim_of("sample_code")


def arguments_of(case, dtype: torch.dtype = torch.float32) -> dict:
    arguments = case.arguments("torch", dtype)
    return {n: v for n, v in arguments.items() if n not in ("x_t", "t", "codebook", "backend")}


def run(
    kernel: Shim, arguments: dict, *, staged: bool, seed: int | list[int] = 3,
    temperature: float = 1.0, reverse_order: bool = False, index: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    logits = arguments["logits"]
    scale = torch.as_tensor(arguments["guidance_scale"]).expand(len(logits)).contiguous().float()
    out, seeds = torch.full((len(logits),), -7), torch.tensor(seed)
    params = SampleCodeParams(
        teacher=teacher_rows(
            logits, arguments["uncond_logits"], scale, arguments["top_k"], arguments["top_p"]
        ),
        out=out.data_ptr(),
        seed=seeds.data_ptr(),
        index=None if index is None else index.data_ptr(),
        seed_stride=seeds.ndim,
        inverse_temperature=1 / temperature,
    )
    kernel.run(params, staged=staged, reverse_order=reverse_order)
    return out


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_known_answers(functions: ctypes.CDLL, counter, key, words) -> None:
    out = (ctypes.c_uint * 4)()
    functions.philox((ctypes.c_uint * 4)(*counter), (ctypes.c_uint * 2)(*key), out)
    assert list(out) == words


@pytest.mark.parametrize("seed", [0, 5, -1, 2**40 + 9, -(2**63)])
def test_uniforms_equal_the_references(functions: ctypes.CDLL, seed: int) -> None:
    wanted = philox.row_uniform(torch.tensor(seed), torch.arange(50), 2)
    row_uniform = functions.row_uniform
    row_uniform.restype = ctypes.c_double
    for row in range(50):
        value = row_uniform(ctypes.c_longlong(seed), ctypes.c_longlong(row), 2)
        assert value == wanted[row].item()


# (rows, vocabulary, guided, top_k, top_p, temperature), each with the regime it covers
REGIMES = {
    "one_code": (3, 1, False, 0, 1.0, 1.0),
    "less_than_a_warp": (20, 19, True, 0, 1.0, 2.0),
    "less_than_a_block": (20, 101, True, 17, 0.9, 0.7),
    "ragged": (20, 1003, True, 0, 0.8, 1.0),
    "no_filter": (10, 2500, False, 0, 1.0, 1.0),
    "var": (6, 4096, True, 900, 0.95, 1.0),
    "llamagen": (2, 16384, True, 900, 1.0, 1.0),
}


@STAGED
@DTYPES
@pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES.keys())
def test_equals_the_reference(kernel: Shim, regime: tuple, dtype, staged: bool) -> None:
    rows, vocabulary, guided, top_k, top_p, temperature = regime
    case = make_case(rows, vocabulary, 1, guided=guided, top_k=top_k, top_p=top_p, dtype=dtype)
    arguments = arguments_of(case, dtype)
    for seed in (3, 4):
        options = {"seed": seed, "temperature": temperature}
        wanted = sample_code(**arguments, **options, backend="torch")
        assert torch.equal(run(kernel, arguments, staged=staged, **options), wanted)


@STAGED
def test_rows_may_bring_their_numbers(kernel: Shim, staged: bool) -> None:
    arguments = arguments_of(make_case(5, 600, 1))
    index = torch.tensor([4, 2**40, -1, 0, 2])
    wanted = sample_code(**arguments, seed=3, index=index, backend="torch")
    assert torch.equal(run(kernel, arguments, staged=staged, index=index), wanted)
    seeds = [3, -1, 2**40, -(2**63), 7]
    wanted = sample_code(**arguments, seed=torch.tensor(seeds), index=index, backend="torch")
    assert torch.equal(run(kernel, arguments, staged=staged, index=index, seed=seeds), wanted)


@STAGED
def test_thread_order_changes_nothing(kernel: Shim, staged: bool) -> None:
    arguments = arguments_of(make_case(5, 600, 1, top_k=90, top_p=0.9))
    drawn = run(kernel, arguments, staged=staged)
    assert torch.equal(drawn, run(kernel, arguments, staged=staged, reverse_order=True))


@STAGED
@pytest.mark.parametrize("filters", [(7, 1.0), (0, 0.5), (250, 0.5), (0, 1.0)])
def test_ties_and_invalid_rows(kernel: Shim, filters, staged: bool) -> None:
    case = make_case(8, 500, 1, guided=False, top_k=filters[0], top_p=filters[1])
    arguments = arguments_of(case)
    arguments["logits"] = torch.tensor([0.0, -0.0, 1.5, -2.0, -torch.inf])[
        torch.randint(5, (8, 500), generator=torch.Generator().manual_seed(0))
    ]
    arguments["logits"][1, 7] = torch.nan
    arguments["logits"][2] = -torch.inf
    arguments["logits"][3, 3] = torch.inf
    drawn = run(kernel, arguments, staged=staged)
    assert torch.equal(drawn, sample_code(**arguments, seed=3, backend="torch"))
    assert (drawn < 0).tolist() == [False, True, True, True] + [False] * 4
