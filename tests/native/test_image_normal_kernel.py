"""The CUDA kernel of the images' noise, run on the CPU by the shim, against the definition; its
logarithm, cosine and sine against 40 digits."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from native.structs import Shim
from ops.test_image_normal import REGIMES, SEEDS, assert_drawn, expected, make_indices
from torch import Tensor

from dd2_fast.ops.image_normal.native import ImageNormalParams


@pytest.fixture
def kernel(shim_of: Callable[[str], Shim]) -> Shim:
    return shim_of("image_normal")


def run(
    kernel: Shim, seeds: Tensor | None, seed: int, indices: Tensor, shape: tuple[int, ...],
    stream: int, reverse_order: bool = False,
) -> Tensor:  # fmt: skip
    count = math.prod(shape)
    out = torch.full((len(indices) * count + 4,), torch.nan)
    params = ImageNormalParams(
        out=out.data_ptr(),
        indices=indices.data_ptr(),
        seeds=0 if seeds is None else seeds.data_ptr(),
        seed=seed,
        images=len(indices),
        count=count,
        stream=stream,
    )
    kernel.run(params, reverse_order=reverse_order)
    assert out[-4:].isnan().all(), "written beyond the end"
    return out[:-4].reshape(len(indices), *shape)


@pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES.keys())
def test_draws_the_definition(kernel: Shim, regime: tuple[int, tuple[int, ...]]) -> None:
    images, shape = regime
    indices = make_indices(images)
    for stream, seed in enumerate(SEEDS if images * math.prod(shape) < 10_000 else SEEDS[-1:]):
        seeds = torch.full_like(indices, seed)
        found = run(kernel, None, seed, indices, shape, stream)
        assert_drawn(found, expected(seeds, indices, shape, stream))
        seeds += torch.arange(images)
        found = run(kernel, seeds, 0, indices, shape, stream)
        assert_drawn(found, expected(seeds, indices, shape, stream))
        assert torch.equal(found, run(kernel, seeds, 0, indices, shape, stream, reverse_order=True))


def words() -> list[int]:
    """Both ends, the boundaries of the reductions and a grid."""
    half = round(2**32 / math.sqrt(2))
    places = [0, 2**29, 2**30, 2**31, 3 * 2**29, 3 * 2**30, 5 * 2**29, 7 * 2**29, 2**32, half,
              half // 2, half // 4]  # fmt: skip
    near = [place + offset for place in places for offset in range(-3, 4)]
    return [w for w in near + list(range(0, 2**32, 2**32 // 997)) if 0 <= w < 2**32]


def test_box_muller_to_double_precision(functions: ctypes.CDLL) -> None:
    """A relative 2^-51, also where the logarithm, the cosine or the sine is next to zero."""
    function = functions.box_muller
    out = (ctypes.c_double * 3)()
    with mpmath.workdps(40):
        for word in words():
            function(ctypes.c_uint(word), ctypes.c_uint(word), out)
            u = (mpmath.mpf(word) + 0.5) / 2**32
            wanted = (-2 * mpmath.log(u), mpmath.cospi(2 * u), mpmath.sinpi(2 * u))
            for found, value in zip(out, wanted, strict=True):
                assert abs(found - value) <= abs(value) * 2.0**-51, (word, found, value)
