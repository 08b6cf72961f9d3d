"""The executor against NumPy, and kernels with planted faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from native.compilers import require_nvrtc

import ptxrun
from dd2_fast.ops import nvrtc

SOURCE = Path(__file__).parent / "selftest.cu"
ARCHS = {80: "compute_80", 90: "compute_90a"}


@pytest.fixture(scope="module", params=ARCHS.values(), ids=ARCHS.keys())
def module(request: pytest.FixtureRequest) -> ptxrun.Module:
    require_nvrtc()
    options = ["-lineinfo"]
    return ptxrun.load(nvrtc.compile_program(SOURCE.read_text(), [], request.param, options).image)


def test_saxpy_and_counts(module) -> None:
    x, y = np.arange(100, dtype=np.float32), np.ones(100, np.float32)
    counters = module.launch("saxpy", (4,), (32,), [y, x, 2.0, 100])
    assert (y == 2 * x + 1).all()
    table = counters.table()
    assert table["fma.rn.f32"][:2] == (4, 100) and table["ld.global.4"] == (8, 200, 800, 26, 8)


def test_block_sum(module) -> None:
    x = np.random.default_rng(0).integers(0, 100, 1000).astype(np.float32)
    out = np.zeros(1, np.float32)
    module.launch("block_sum", (1,), (256,), [out, x, 1000])
    assert out[0] == x.sum()


def test_product(module) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-8, 8, shape).astype(np.float16) for shape in ((16, 16), (8, 16)))
    c, transposed = np.zeros((16, 8), np.float32), np.zeros((32, 4), np.uint32)
    stored = np.zeros((16, 16), np.float16)
    module.launch("product", (1,), (32,), [c, transposed, stored, a, b])
    assert (stored == a).all()
    assert (c == a.astype(np.float32) @ b.astype(np.float32).T).all()
    pairs = transposed.view(np.float16).reshape(32, 4, 2)
    for lane in range(32):
        for n, (r, k) in enumerate(((0, 0), (8, 0), (0, 8), (8, 8))):
            row, pair = lane // 4, lane % 4 * 2
            wanted = a[r + pair : r + pair + 2, k + row]
            assert (pairs[lane, n] == wanted).all()


def test_sums_are_cut_off_as_tensor_cores_do(module) -> None:
    """1 + 16 products of 2^-24: eight at once on 8.0, each cut off at 2^-24 of the largest, on
    9.0 all, at 2^-25; what is left is cut off to a float, towards zero."""
    small, out = np.full(16, 2.0**-24, np.float16), np.zeros(32, np.float32)
    module.launch("sums", (1,), (32,), [out, small, 1.0])
    assert (out == np.float32(1 + 2.0**-20)).all()
    small[:] = 2.0**-24  # twice as large a start: 8.0 sees a half of 2^-23 each, and drops it
    module.launch("sums", (1,), (32,), [out, small, 2.0])
    assert (out == np.float32(2 + (0 if module.arch == 80 else 2.0**-20))).all()


def test_copies(module) -> None:
    data = np.random.default_rng(2).integers(0, 1000, (5, 128)).astype(np.int32)
    out = np.zeros(32, np.int32)
    module.launch("copies", (1,), (32,), [out, data, 5])
    columns = (np.arange(32)[:, None] * 4 + np.arange(4) + 17) % 128
    assert (out == data.sum(0)[columns].sum(1)).all()


def test_lanes(module) -> None:
    x = np.random.default_rng(3).integers(1, 2**32, 32).astype(np.uint32)
    out = np.zeros((32, 17), np.uint32)
    module.launch("lanes", (1,), (32,), [out, x])
    lane = np.arange(32)
    ballot = sum(1 << int(n) for n in lane if x[n] & 1)
    mask = lambda k: sum(1 << int(n) for n in lane if (x[n] & 3) == (x[k] & 3))  # noqa: E731
    other = ~x
    wanted = [
        x[np.where(lane >= 3, lane - 3, lane)], x[lane ^ 5], x[lane // 8 * 8 + 1],
        np.full(32, ballot), np.full(32, int(x.astype(np.uint64).sum()) % 2**32),
        [mask(k) for k in lane], [int(f"{int(v):032b}"[::-1], 2) for v in x],
        [32 - int(v).bit_length() for v in x], [int(v).bit_count() for v in x],
        [_bytes(int(a), int(b), 0x5147) for a, b in zip(x, other, strict=True)],
        [int(v) * 2654435761 >> 32 for v in x], x // (lane + 1).astype(np.uint32),
        [_funnel(int(a), int(b), int(n)) for a, b, n in zip(x, other, lane, strict=True)],
        np.where(lane < 7, x[6], x[31]), np.ones(32), np.full(32, int((x & 1).sum())),
        [(int(v) & -int(v)).bit_length() for v in x],
    ]  # fmt: skip
    for n, values in enumerate(wanted):
        assert (out[:, n] == np.array(values, np.uint64)).all(), n


def _bytes(a: int, b: int, selector: int) -> int:
    data = (b << 32 | a).to_bytes(8, "little")
    return int.from_bytes(bytes(data[selector >> 4 * n & 7] for n in range(4)), "little")


def _funnel(low: int, high: int, by: int) -> int:
    return (high << 32 | low) << by >> 32 & 0xFFFFFFFF


def test_functions(module) -> None:
    from math import erf

    x = np.array([0.5, -3.7, 1e-40, 65519.9, 100.25, -0.001, 7.5, 8.5, 3e38, -1e-30], np.float32)
    out = np.zeros((len(x), 12), np.float32)
    module.launch("functions", (1,), (32,), [out, x, len(x)])
    d = x.astype(np.float64)
    with np.errstate(all="ignore"):
        bits = x.view(np.uint32).astype(np.uint64)
        brain = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
        wanted = [
            np.exp2(d), np.exp(d), np.log(abs(d)), np.sqrt(abs(d)), 1 / d, d / 3,
            x.astype(np.float16).astype(np.float64), brain, np.rint(d),
            np.clip(np.floor(d), -(2.0**31), 2.0**31), None, [erf(v) for v in d],
        ]  # fmt: skip
        for n, values in enumerate(wanted):
            if values is not None:
                values = np.array(values, np.float64).astype(np.float32)
                tolerance = {1: 2e-5, 2: 1e-6, 11: 1e-6}.get(n, 2e-7)
                np.testing.assert_allclose(
                    out[:, n], values, rtol=tolerance, atol=2e-45, err_msg=str(n)
                )
    # Towards zero: 0.5 + 1e-9 stays, -3.7 + 1e-9 loses a bit.
    assert out[0, 10] == 0.5 and out[1, 10] == np.nextafter(x[1], np.float32(0))


def test_calls(module) -> None:
    rng = np.random.default_rng(4)
    x, digits = rng.integers(-50, 50, 64).astype(F), rng.integers(0, 100, 16).astype(S)
    out, sums = np.zeros(64, F), np.full(64, 7, S)
    counters = module.launch("calls", (1,), (64,), [out, sums, x, digits])
    lane = np.arange(64)
    wanted = x.copy()
    for n in range(2):
        wanted = np.where(lane % 3 > n, 2 * wanted + 1, wanted)
    wanted = np.roll(np.roll(wanted, -1) + 1, -5) + 1
    assert (out == wanted).all()
    for i in lane:
        total = (i - 10) * int((digits % (5 + i % 4)).sum())
        assert sums[i] == (7 if i % 2 == 0 else -1 if i < 10 else total), i
    # 2 x 2 calls of neighbour, each of which stores once, and 2 + 1 of on_line: moves, no memory.
    table = counters.table()
    assert table["st.shared.4"].warps == 4
    assert not any(".param" in op for op in table if not op.startswith("ld.param"))


F, S, U = np.float32, np.int32, np.uint32
FAULTS = {
    "bad_race": (64, lambda: [np.zeros(64, F)], {}, "race"),
    "bad_race_in_warp": (32, lambda: [np.zeros(32, F)], {}, "race"),
    "bad_reuse": (64, lambda: [np.zeros(64, F)], {}, "race"),
    "bad_bounds": (64, lambda: [np.zeros(64, F), np.zeros(64, F), 64], {}, "out of bounds"),
    "bad_shared_bounds": (64, lambda: [np.zeros(64, F), 1], {"shared": 256}, "out of bounds"),
    "bad_uninitialised": (64, lambda: [np.zeros(64, F)], {}, "uninitialised"),
    "bad_alignment": (4, lambda: [np.zeros(16, F), np.zeros(18, F), 1], {}, "misaligned"),
    "bad_mask": (32, lambda: [np.zeros(32, U)], {}, "deadlock"),
    "bad_barrier": (96, lambda: [np.zeros(96, F)], {}, "deadlock"),
    "bad_no_wait": (32, lambda: [np.zeros(32, S), np.zeros(128, S)], {}, "race"),
    "bad_loop": (32, lambda: [np.zeros(1, S)], {"checks": ptxrun.Checks(budget=100_000)}, "budget"),
    "bad_blocks": (32, lambda: [np.full(1, 9, S)], {"grid": (2,)}, "global race"),
    "bad_call": (64, lambda: [np.zeros(64, F)], {}, "race"),
    "saxpy": (2048, lambda: [np.zeros(1, F), np.zeros(1, F), 1.0, 0], {}, "limits"),
    "bad_same_value": (
        64,
        lambda: [np.zeros(64, F)],
        {"checks": ptxrun.Checks(same_value=True)},
        "race",
    ),
    "good_warp": (64, lambda: [np.zeros(64, F)], {}, None),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(module, name: str) -> None:
    threads, args, options, kind = FAULTS[name]
    options = {"grid": (1,), **options}
    grid = options.pop("grid")
    if kind is None:
        module.launch(name, grid, (threads,), args(), **options)
        return
    with pytest.raises(ptxrun.PtxError) as found:
        module.launch(name, grid, (threads,), args(), **options)
    kinds = {f.kind for f in found.value.faults}
    assert kind in kinds, found.value
    if kind not in ("limits",):
        assert all(f.line > 0 and f.source for f in found.value.faults)
