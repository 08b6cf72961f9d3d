"""The committed counts of GPU kernels are what the kernels execute: a regression test of their
performance that needs no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from native.compilers import require_nvrtc
from processes import run_python
from result_files import BENCH

COUNTS = BENCH / "results" / "counted"
FILE = COUNTS / "cuda.json"
NUMBERS = ("instructions_a_logit", "global_bytes_a_row", "shared_bytes_a_row", "bound_ms")
KEYS = ("backend", "operator", "shape", "data", "rows", "top_p")


def entries(path: Path) -> dict[tuple, dict]:
    return {tuple(e.get(key) for key in KEYS): e for e in json.loads(path.read_text())["entries"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cuda", "filters", "norms", "attention"])
def test_counts_are_the_committed_ones(name: str, tmp_path: Path) -> None:
    """Within 1%: what is faster or slower is counted anew, ``python bench/tools/counted.py``."""
    require_nvrtc()
    if name != "cuda":
        pytest.importorskip("triton")
    command = [str(BENCH / "tools" / "counted.py"), "--out", str(tmp_path), "--file", name]
    run_python(*command, folder=tmp_path, timeout=1200)
    wanted, found = entries(COUNTS / f"{name}.json"), entries(tmp_path / f"{name}.json")
    assert wanted.keys() == found.keys()
    for key, entry in wanted.items():
        assert entry["kernels"] == found[key]["kernels"], key
        for number in NUMBERS:
            assert found[key][number] == pytest.approx(entry[number], rel=0.01), (key, number)


def test_measurements_are_compared_with_the_counts() -> None:
    program = (
        "import sys; sys.path[:0] = ['.', 'tools']\n"
        "from records import Row; from counted import against\n"
        "rows = [Row('csd_loss cuda var', 'cuda', 0.01, 0.0, {'images': 32}),\n"
        "        Row('csd_loss cuda var', 'eager', 1, 0), Row('nothing cuda var', 'cuda', 1, 0)]\n"
        "print(*against(rows), sep='\\n')"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=BENCH, capture_output=True, text=True, check=True
    )
    bound = entries(FILE)[None, "csd_loss", "var", "normal", 43_520, None]["bound_ms"] / 2
    assert run.stdout == (
        f"csd_loss var, 32 images: 10.000 ms measured, {bound:.3f} ms counted, {10 / bound:.2f}x\n"
    )
