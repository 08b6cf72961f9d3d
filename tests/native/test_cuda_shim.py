"""cuda_shim.h against plain arithmetic; what it gets wrong, every kernel test above it would."""

from __future__ import annotations

import ctypes
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from native.build import NATIVE_DIR, build_shared, compiler_command


@pytest.fixture(scope="session", params=["default-switch", "ucontext"])
def shim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which(compiler_command()[0]) is None:
        pytest.skip(f"no C++ compiler {compiler_command()[0]!r}")
    flags = ("-DDD2_SHIM_UCONTEXT",) if request.param == "ucontext" else ()
    path = build_shared(
        [NATIVE_DIR / "shim_selftest.cpp"], tmp_path_factory.mktemp("shim"), flags=flags
    )
    library = ctypes.CDLL(str(path))
    library.last_error.restype = ctypes.c_char_p
    return library


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def last_error(shim: ctypes.CDLL) -> str:
    return shim.last_error().decode()


@pytest.mark.parametrize(
    ("blocks", "threads", "per_block"),
    [
        pytest.param(1, 32, 1, id="one-value"),
        pytest.param(3, 64, 0, id="empty"),
        pytest.param(5, 96, 1001, id="ragged"),
        pytest.param(2, 1024, 4096, id="largest-block"),
        pytest.param(64, 256, 4096, id="vocabulary"),
    ],
)
@pytest.mark.parametrize("dtype", ["int64", "float"])
def test_block_sum_is_exact(
    shim: ctypes.CDLL, dtype: str, blocks: int, threads: int, per_block: int
) -> None:
    # Small integers: a float sum is exact in any order.
    kind = np.int64 if dtype == "int64" else np.float32
    values = np.random.default_rng(0).integers(-9, 10, (blocks, per_block)).astype(kind)
    out = np.full(blocks, -1, kind)
    entry = getattr(shim, f"block_sum_{dtype}")
    assert entry(pointer(out), pointer(values), blocks, threads, per_block) == 0
    np.testing.assert_array_equal(out, values.sum(1))


def test_block_sum_of_64_by_256_threads_is_fast(shim: ctypes.CDLL) -> None:
    values, out = np.ones((64, 256), np.float32), np.zeros(64, np.float32)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        assert shim.block_sum_float(pointer(out), pointer(values), 64, 256, 256) == 0
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5


@pytest.fixture(params=["forward", "reverse"])
def order(request: pytest.FixtureRequest, shim: ctypes.CDLL) -> Iterator[str]:
    shim.set_reverse_order(int(request.param == "reverse"))
    yield request.param
    shim.set_reverse_order(0)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("threads", [32, 64, 1024])
def test_scan_by_ballot(shim: ctypes.CDLL, threads: int) -> None:
    keep = np.random.default_rng(threads).integers(0, 2, threads, dtype=np.int32)
    out = np.full(threads, -1, np.int32)
    assert shim.scan(pointer(out), pointer(keep), threads) == 0
    np.testing.assert_array_equal(out, np.cumsum(keep) - keep)


def test_every_thread_of_every_block_runs_once(shim: ctypes.CDLL) -> None:
    count, total = np.zeros(1, np.int32), np.zeros(1, np.uint64)
    real, largest = np.zeros(1, np.float32), np.full(1, -1, np.int32)
    assert shim.count(*map(pointer, (count, total, real, largest))) == 0
    threads = 3 * 2 * 2 * 16 * 3
    assert (count[0], total[0]) == (threads, threads * (threads - 1) // 2)
    assert (real[0], largest[0]) == (threads / 2, threads - 1)


@pytest.mark.parametrize("count", [1, 64, 1000])
def test_dynamic_shared_memory_starts_each_block_as_nan(shim: ctypes.CDLL, count: int) -> None:
    data = np.arange(3 * count, dtype=np.float32).reshape(3, count)
    want = data[:, ::-1].copy()
    stale = np.zeros(1, np.int32)
    assert shim.reverse(pointer(data), pointer(stale), 3, count) == 0
    np.testing.assert_array_equal(data, want)
    assert stale[0] == 0


@pytest.mark.usefixtures("order")
def test_collectives(shim: ctypes.CDLL) -> None:
    lane = np.arange(32)
    out = np.full((8, 32), -1, np.int64)
    assert shim.collectives(pointer(out)) == 0
    want = [
        2**40 + (lane + 5) % 32,
        np.where(lane < 3, lane, lane - 3),
        np.where(lane > 28, lane, lane + 3),
        lane ^ 9,
        np.full(32, 1),
        np.full(32, 1),
        np.where(lane < 16, 0x0000AAAA, 0xAAAA0000),
        100 * (lane + 1) + 31 - lane,
    ]
    np.testing.assert_array_equal(out, np.stack(want))


def test_reverse_order_shows_a_missing_barrier(shim: ctypes.CDLL, order: str) -> None:
    out = np.full(32, -1, np.float32)
    assert shim.racing(pointer(out)) == 0
    assert np.isnan(out[1:]).all() == (order == "reverse")


def tensor_core_sums(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b`` as compute capability 8.0 adds eight products at a time (arXiv 2511.10909)."""
    sums = np.zeros((a.shape[0], b.shape[1]))
    for k in range(0, a.shape[1], 8):
        left, right = a[:, k : k + 8, None].astype(float), b[None, k : k + 8].astype(float)
        terms = np.concatenate([left * right, sums[:, None]], 1)
        exponents = np.concatenate(
            [np.frexp(left)[1] + np.frexp(right)[1] - 2, np.frexp(sums)[1][:, None] - 1], 1
        )
        scale = np.exp2(24 - np.where(terms == 0, -200, exponents).max(1))
        digits, exponent = np.frexp(np.trunc(terms * scale[:, None]).sum(1) / scale)
        sums = np.ldexp(np.trunc(digits * 2**24), exponent - 24)
    return sums


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("transposed", [False, True])
def test_product_of_halves(shim: ctypes.CDLL, transposed: bool) -> None:
    random = np.random.default_rng(0)
    a, b = (random.standard_normal(shape).astype(np.float16) for shape in ((16, 16), (16, 8)))
    stored = np.ascontiguousarray(b.T) if transposed else b
    out = np.full((16, 8), np.nan, np.float32)
    assert shim.product(pointer(out), pointer(a), pointer(stored), int(transposed)) == 0
    exact = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(out, exact, rtol=0, atol=4e-6)
    np.testing.assert_array_equal(out, tensor_core_sums(a, b))


def test_rounding_to_halves(shim: ctypes.CDLL) -> None:
    shim.half_round_trip.restype = ctypes.c_float
    values = np.random.default_rng(0).standard_normal(1000) * 10.0 ** np.arange(-9, 11).repeat(50)
    special = [0, -0.0, np.inf, -np.inf, 65504, 65519, 65520, 2**-24, 2**-25, 2**-14, 1 + 2**-11]
    values = np.concatenate([values, special]).astype(np.float32)
    with np.errstate(over="ignore"):
        wanted = values.astype(np.float16).astype(np.float32)
    got = [shim.half_round_trip(ctypes.c_float(value)) for value in values]
    np.testing.assert_array_equal(np.array(got, np.float32), wanted)
    assert np.isnan(shim.half_round_trip(ctypes.c_float(np.nan)))


def test_a_copy_arrives_when_it_is_waited_for(shim: ctypes.CDLL) -> None:
    out, given = np.zeros(2, np.float32), np.full(4, 3, np.float32)
    assert shim.not_waited(pointer(out), pointer(given)) == 0
    assert np.isnan(out[0]) and out[1] == 3


def test_a_fiber_has_64_kib_of_stack(shim: ctypes.CDLL) -> None:
    out = np.full(64, -1, np.int32)
    assert shim.deep_stack(pointer(out), 64) == 0
    np.testing.assert_array_equal(out, 15)


@pytest.mark.parametrize(
    ("entry", "messages"),
    [
        pytest.param(
            "exited_at_barrier",
            [
                "deadlock in block (0, 0, 0)",
                "thread (0, 0, 0) and 31 more: wait at __syncthreads",
                "thread (32, 0, 0) and 223 more: exited",
            ],
            id="exited-at-barrier",
        ),
        pytest.param(
            "mixed_waits",
            [
                "thread (32, 0, 0) and 31 more: exited",
                "thread (7, 0, 0) and 0 more: wait at __syncthreads",
                "thread (0, 0, 0) and 30 more: wait at __shfl_xor_sync with mask 0xffffffff",
            ],
            id="mixed-waits",
        ),
        pytest.param(
            "outside_mask",
            ["thread (0, 0, 0) is not in the mask of its __ballot_sync"],
            id="outside-mask",
        ),
        pytest.param("overrun", ["block (0, 0, 0) wrote past its dynamic shared"], id="overrun"),
        pytest.param("too_many_threads", ["no device accepts"], id="too-many-threads"),
    ],
)
def test_a_faulty_kernel_is_reported(shim: ctypes.CDLL, entry: str, messages: list[str]) -> None:
    assert getattr(shim, entry)() == 1
    for message in messages:
        assert message in last_error(shim)
    # The next launch starts clean.
    values, out = np.ones((2, 64), np.int64), np.zeros(2, np.int64)
    assert shim.block_sum_int64(pointer(out), pointer(values), 2, 64, 64) == 0
    np.testing.assert_array_equal(out, 64)


def test_a_failed_build_shows_the_compilers_message(tmp_path: Path) -> None:
    if shutil.which(compiler_command()[0]) is None:
        pytest.skip(f"no C++ compiler {compiler_command()[0]!r}")
    broken = tmp_path / "broken.cpp"
    broken.write_text("int f() { return undeclared_name; }\n")
    with pytest.raises(RuntimeError, match="undeclared_name"):
        build_shared([broken], tmp_path)
