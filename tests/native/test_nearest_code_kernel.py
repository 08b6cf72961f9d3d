"""The CUDA kernel of the nearest code, run on the CPU by the shim, against float64 distances."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from native.structs import Shim, unaligned
from ops.test_nearest_code import REGIMES, assert_nearest, duplicated, invalid, make_inputs
from torch import Tensor

from dd2_fast.ops.nearest_code.native import NearestCodeParams

PROCESSORS = {"many_tokens": 1, "few_tokens": 132}  # that decide a block's share of the tokens


class Kernel(NamedTuple):
    """The shim, and the multiprocessors of its device."""

    shim: Shim
    processors: int


@pytest.fixture(params=PROCESSORS.values(), ids=PROCESSORS.keys())
def kernel(request: pytest.FixtureRequest, shim_of: Callable[[str], Shim]) -> Kernel:
    return Kernel(shim_of("nearest_code"), request.param)


def run(kernel: Kernel, x: Tensor, codebook: Tensor, reverse_order: bool = False) -> Tensor:
    out = torch.full((len(x),), -7)
    params = NearestCodeParams(
        out=out.data_ptr(),
        x=x.data_ptr(),
        codebook=codebook.data_ptr(),
        rows=len(x),
        vocabulary=codebook.shape[0],
        dim=codebook.shape[1],
    )
    kernel.shim.run(params, processors=kernel.processors, reverse_order=reverse_order)
    return out


@pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES.keys())
def test_finds_the_smallest_distance(kernel: Kernel, regime: tuple[int, int, int]) -> None:
    x, codebook = make_inputs(min(regime[0], 150), *regime[1:])
    found = run(kernel, x, codebook)
    assert_nearest(found, x, codebook)
    assert torch.equal(found, run(kernel, x, codebook, reverse_order=True))


@pytest.mark.parametrize("dim", [8, 32, 64])
def test_unaligned_codebook(kernel: Kernel, dim: int) -> None:
    x, codebook = make_inputs(40, 77, dim)
    assert torch.equal(run(kernel, x, unaligned(codebook)), run(kernel, x, codebook))


@pytest.mark.parametrize("dim", [3, 8, 32, 40])
def test_equal_codes_give_the_first(kernel: Kernel, dim: int) -> None:
    x, codebook, wanted = duplicated(dim)
    assert torch.equal(run(kernel, x, codebook), wanted)


def test_invalid_tokens_and_codes(kernel: Kernel) -> None:
    x, codebook, wanted = invalid()
    assert torch.equal(run(kernel, x, codebook), wanted)
    assert (run(kernel, x, torch.full_like(codebook, torch.nan)) == -1).all()
