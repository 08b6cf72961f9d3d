"""The executor against NumPy, and kernels with planted faults. Needs nvcc."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import ptxrun

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=[80, 90])
def module(request, tmp_path_factory) -> ptxrun.Module:
    target = tmp_path_factory.mktemp("ptx") / "kernels.ptx"
    subprocess.run(["nvcc", "-std=c++17", "-lineinfo", f"-arch=sm_{request.param}", "-ptx",
                    str(HERE / "kernels.cu"), "-o", str(target)], check=True)  # fmt: skip
    return ptxrun.load(target.read_text())


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
    module.launch("product", (1,), (32,), [c, transposed, a, b])
    assert (c == a.astype(np.float32) @ b.astype(np.float32).T).all()
    pairs = transposed.view(np.float16).reshape(32, 4, 2)
    for lane in range(32):
        for n, (r, k) in enumerate(((0, 0), (8, 0), (0, 8), (8, 8))):
            row, pair = lane // 4, lane % 4 * 2
            wanted = a[r + pair : r + pair + 2, k + row]
            assert (pairs[lane, n] == wanted).all()


def test_copies(module) -> None:
    data = np.random.default_rng(2).integers(0, 1000, (5, 128)).astype(np.int32)
    out = np.zeros(32, np.int32)
    module.launch("copies", (1,), (32,), [out, data, 5])
    columns = (np.arange(32)[:, None] * 4 + np.arange(4) + 17) % 128
    assert (out == data.sum(0)[columns].sum(1)).all()


def test_lanes(module) -> None:
    x = np.random.default_rng(3).integers(1, 2**32, 32).astype(np.uint32)
    out = np.zeros((32, 16), np.uint32)
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
        [((int(b) << 32 | int(a)) << int(n) >> 32) & 0xFFFFFFFF for a, b, n in zip(x, other, lane, strict=True)],
        np.where(lane < 7, x[6], x[31]), np.ones(32), np.full(32, int((x & 1).sum())),
    ]  # fmt: skip
    for n, values in enumerate(wanted):
        assert (out[:, n] == np.array(values, np.uint64)).all(), n


def _bytes(a: int, b: int, selector: int) -> int:
    data = (b << 32 | a).to_bytes(8, "little")
    return int.from_bytes(bytes(data[selector >> 4 * n & 7] for n in range(4)), "little")


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


F, I, U = np.float32, np.int32, np.uint32
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
    "bad_no_wait": (32, lambda: [np.zeros(32, I), np.zeros(128, I)], {}, "race"),
    "bad_loop": (32, lambda: [np.zeros(1, I)], {"checks": ptxrun.Checks(budget=100_000)}, "budget"),
    "bad_blocks": (32, lambda: [np.full(1, 9, I)], {"grid": (2,)}, "global race"),
    "saxpy": (2048, lambda: [np.zeros(1, F), np.zeros(1, F), 1.0, 0], {}, "limits"),
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
