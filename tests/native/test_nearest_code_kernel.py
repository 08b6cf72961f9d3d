"""The CUDA kernel of the nearest code, run on the CPU by the shim, against float64 distances."""

from __future__ import annotations

import ctypes

import pytest
import torch
from native.structs import build_shim, fields
from ops.test_nearest_code import REGIMES, assert_nearest, duplicated, invalid, make_inputs
from torch import Tensor


class Params(ctypes.Structure):
    """``dd2::NearestCodeParams``."""

    _fields_ = [
        *fields("out x codebook", ctypes.c_void_p),
        *fields("rows vocabulary dim", ctypes.c_longlong),
    ]


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build_shim("nearest_code", tmp_path_factory.mktemp("nearest_code"))


def run(kernel: ctypes.CDLL, x: Tensor, codebook: Tensor, reverse_order: bool = False) -> Tensor:
    out = torch.full((len(x),), -7)
    params = Params(
        out=out.data_ptr(),
        x=x.data_ptr(),
        codebook=codebook.data_ptr(),
        rows=len(x),
        vocabulary=codebook.shape[0],
        dim=codebook.shape[1],
    )
    error = kernel.nearest_code(ctypes.byref(params), reverse_order)
    assert error is None, error.decode()
    return out


@pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES.keys())
def test_finds_the_smallest_distance(kernel: ctypes.CDLL, regime: tuple[int, int, int]) -> None:
    x, codebook = make_inputs(min(regime[0], 150), *regime[1:])
    found = run(kernel, x, codebook)
    assert_nearest(found, x, codebook)
    assert torch.equal(found, run(kernel, x, codebook, reverse_order=True))


@pytest.mark.parametrize("dim", [3, 8, 32, 40])
def test_equal_codes_give_the_first(kernel: ctypes.CDLL, dim: int) -> None:
    x, codebook, wanted = duplicated(dim)
    assert torch.equal(run(kernel, x, codebook), wanted)


def test_invalid_tokens_and_codes(kernel: ctypes.CDLL) -> None:
    x, codebook, wanted = invalid()
    assert torch.equal(run(kernel, x, codebook), wanted)
    assert (run(kernel, x, torch.full_like(codebook, torch.nan)) == -1).all()
