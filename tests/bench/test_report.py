"""report.py: the committed page is what the committed files make, and every kind of file works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from optional import require
from result_files import BENCH, gpu_check_file, pytest_file


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "tools" / "report.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_committed_page_is_made_from_the_committed_files() -> None:
    run = report("--check")
    assert run.returncode == 0, run.stdout + run.stderr
    for picture in re.findall(r"!\[.*\]\((.*)\)", (BENCH / "RESULTS.md").read_text()):
        assert (BENCH / picture).is_file(), f"{picture} is missing: run report.py"


def test_the_page_says_where_nothing_was_measured(tmp_path: Path) -> None:
    pytest_file(tmp_path / "cpu.json", [("nearest_code cpu var", "cpu", 1.0, 0.1)])
    page = make(tmp_path)
    assert "| `nearest_code` | var | not measured |" in page
    assert "| `csd_loss`, forward and backward | not measured | not measured |" in page
    assert "**No GPU figure exists yet**" in page


def test_a_gpu_file_comes_first_with_its_parts(tmp_path: Path) -> None:
    rows = [("csd_loss cuda var", "eager", 8.0, 0.8), ("csd_loss cuda var", "cuda", 2.0, 0.1)]
    pytest_file(tmp_path / "cpu.json", [("csd_loss cpu var", "cpu", 3.0, 0.1)])
    gpu_check_file(tmp_path / "gpu.json", rows)
    page = make(tmp_path)
    assert "No GPU figure" not in page
    assert page.index("## A GPU") < page.index("## A CPU, 2 threads")
    assert "| build | passed | 12 s | done |" in page
    # ms, spread, times eager; nothing is known of torch.compile, the limit and memory
    assert "|  | cuda | 2 | 5% | 4.0 |  |  |  |" in page


def test_a_machine_with_a_gpu_may_have_measured_its_cpu_too(tmp_path: Path) -> None:
    rows = [("csd_loss cpu var", "cpu", 8.0, 0.8), ("sample_code cuda var", "cuda", 2.0, 0.1)]
    gpu_check_file(tmp_path / "gpu.json", rows)
    page = make(tmp_path)
    assert "| `csd_loss`, forward and backward | var | not measured |" in page
    assert "| `sample_code` | not measured | var |" in page
    assert "| var on the CPU | cpu | 8 |" in page and "| var | cuda | 2 |" in page


def test_of_a_benchmark_the_newest_file_counts(tmp_path: Path) -> None:
    old = pytest_file(
        tmp_path / "old.json",
        [("nearest_code cpu var", "cpu", 7.0, 0.1), ("sample_code cpu var", "cpu", 9.0, 0.1)],
    )
    content = json.loads(old.read_text())
    old.write_text(json.dumps({**content, "datetime": "2025-12-31T00:00:00"}))
    pytest_file(tmp_path / "new.json", [("nearest_code cpu var", "cpu", 5.0, 0.1)])
    page = make(tmp_path)
    assert "| var | cpu | 5 |" in page and "| var | cpu | 7 |" not in page
    assert "| var | cpu | 9 |" in page  # only the old file has it


def test_a_busy_machine_is_said_beside_its_times(tmp_path: Path) -> None:
    quiet = pytest_file(tmp_path / "quiet.json", [("sample_code cpu var", "cpu", 9.0, 0.1)])
    busy = pytest_file(tmp_path / "busy.json", [("nearest_code cpu var", "cpu", 7.0, 0.1)])
    for path, date, share in ((quiet, "2025-12-31", 0.01), (busy, "2026-01-01", 0.83)):
        content = json.loads(path.read_text())
        content["machine_info"]["load"] = {"start": 1.0, "end": 2.0, "others": share}
        path.write_text(json.dumps({**content, "datetime": f"{date}T00:00:00"}))
    page = make(tmp_path)
    assert "other processes 1% of the processors" in page  # of the machine
    said = "In busy.json other processes had 83% of the processors"
    assert page.count(said) == 1 and "In quiet.json" not in page
    assert page.index("From quiet.json") < page.index("From busy.json") < page.index(said)


def test_draws_what_the_files_have(tmp_path: Path) -> None:
    require("matplotlib")

    def limited(flops: float) -> dict[str, Any]:
        return {"bytes": 1e6, "flops": flops, "copy_bandwidth": 1e10, "matrix_rate": 1e11,
                "limit_seconds": 1e-4, "peak_bytes": 2e6}  # fmt: skip

    rows = [("conditional_score cpu var", "eager", 4.0, 0.2),
            ("conditional_score cpu var", "cpu", 1.0, 0.1)]  # fmt: skip
    pytest_file(tmp_path / "a.json", rows, limited(1e7))
    page = make(tmp_path)
    assert "| var | eager | 4 | 5% | 1.0 |  | 2.5 | 2.0 |" in page
    assert "![Roofline on A CPU, 2 threads](results/a-roofline.png)" in page
    assert "scaling.png" not in page
    assert (tmp_path / "a-roofline.png").read_bytes().startswith(b"\x89PNG")

    content = json.loads((tmp_path / "a.json").read_text())
    for i, value in enumerate((100, 200)):
        extra = {"variant": "fused", "scaling": {"of": "op", "axis": "V", "value": value}}
        stats = {"median": 1e-3 * (i + 1), "iqr": 1e-5}
        content["benchmarks"].append(
            {"group": f"scaling cpu op V {value}", "extra_info": extra, "stats": stats}
        )
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert "![Scaling on A CPU, 2 threads](results/a-scaling.png)" in make(tmp_path)
    assert (tmp_path / "a-scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("change", ["page", "numbers"])
def test_check_sees_a_difference(tmp_path: Path, change: str) -> None:
    path = pytest_file(tmp_path / "a.json", [("nearest_code cpu var", "cpu", 1.0, 0.1)])
    make(tmp_path)
    arguments = ["--results", tmp_path, "--out", tmp_path / "page.md", "--check"]
    assert report(*arguments).returncode == 0
    if change == "page":
        (tmp_path / "page.md").write_text("by hand")
    else:
        pytest_file(path, [("nearest_code cpu var", "cpu", 2.0, 0.1)])
    before = (tmp_path / "page.md").read_text()
    assert report(*arguments).returncode == 1
    assert (tmp_path / "page.md").read_text() == before


def make(folder: Path) -> str:
    run = report("--results", folder, "--out", folder / "page.md")
    assert run.returncode == 0, run.stdout + run.stderr
    return (folder / "page.md").read_text()


def test_no_rate_is_above_the_limit(tmp_path: Path) -> None:
    """What a run reached is a limit too: 80 GFLOP/s here, where the matrix product did 50."""
    extra = {"bytes": 1e3, "flops": 1e8, "copy_bandwidth": 1e10, "matrix_rate": 5e10,
             "limit_seconds": 2e-3}  # fmt: skip
    rows = [("nearest_code cpu var", "cpu", 1.25, 0.1), ("csd_loss cpu var", "eager", 5.0, 0.1)]
    pytest_file(tmp_path / "a.json", rows, extra)
    page = make(tmp_path)
    assert "| var | cpu | 1.25 | 8% |  |  | 100.0 |  |" in page
    assert "| var | eager | 5 | 2% | 1.0 |  | 25.0 |  |" in page
    assert "highest rate 0.08 TFLOP/s" in page


def test_a_rate_in_bfloat16_is_no_limit_of_float32(tmp_path: Path) -> None:
    extra = {"bytes": 0, "flops": 1e8, "copy_bandwidth": 1e10, "matrix_rate": 5e10}
    rows = [("sampling cpu var", "one_step", 4.0, 0.1), ("sampling cpu var", "bf16", 1.0, 0.1)]
    path = pytest_file(tmp_path / "a.json", rows, extra)
    page = make(tmp_path)
    # A file that says nothing of bfloat16's rate
    assert "| var | one_step | 4 | 2% |  |  | 50.0 |  |" in page
    assert "|  | bf16 | 1 | 10% |  |  |  |  |" in page
    content = json.loads(path.read_text())
    content["benchmarks"][1]["extra_info"] |= {"rate_of": "bfloat16", "matrix_rate": 2e11}
    path.write_text(json.dumps(content))
    page = make(tmp_path)
    assert "| var | one_step | 4 | 2% |  |  | 50.0 |  |" in page
    assert "|  | bf16 | 1 | 10% |  |  | 50.0 |  |" in page


def test_the_committed_page_has_nothing_beyond_a_limit() -> None:
    measured = (BENCH / "RESULTS.md").read_text().partition("## Counted")[0]
    shares = re.findall(r"\| ([\d.]+) \| [\d.]* \|$", measured, re.M)
    assert len(shares) > 50 and max(map(float, shares)) <= 100


def test_the_load_of_the_machine_is_told(tmp_path: Path) -> None:
    path = pytest_file(tmp_path / "a.json", [("csd_loss cpu var", "cpu", 1.0, 0.1)])
    content = json.loads(path.read_text())
    content["machine_info"]["load"] = {"start": 0.2, "end": 3.0, "others": 0.31}
    path.write_text(json.dumps(content))
    assert "other processes 31% of the processors" in make(tmp_path)
