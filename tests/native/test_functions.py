"""Functions that GPU kernels share with the CPU: Philox against its known answers; logarithm,
cosine and sine of images' noise against 40 digits."""

from __future__ import annotations

import ctypes
import math
import shutil

import mpmath
import pytest
import torch
from native.build import NATIVE_DIR, build_shared, compiler_command
from ops.test_philox import KNOWN

from dd2_fast.ops import philox


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which(compiler_command()[0]) is None:
        pytest.skip(f"no C++ compiler {compiler_command()[0]!r}")
    folder = tmp_path_factory.mktemp("functions")
    return ctypes.CDLL(str(build_shared([NATIVE_DIR / "functions.cpp"], folder)))


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
