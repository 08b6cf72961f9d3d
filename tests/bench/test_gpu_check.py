"""gpu_check.sh rehearsed without a GPU: commands in PATH stand in for Python, the sanitizer and
``timeout``, and record what is asked of them."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from result_files import BENCH, pytest_file

SIDE_BY_SIDE = ["tests", "cupy", "triton", "models",
                "memcheck", "racecheck", "synccheck", "initcheck"]  # fmt: skip
PARTS = ["build", *SIDE_BY_SIDE, "operators", "training", "forward", "sampling", "more"]

PYTHON = """#!{python}
import json, os, shutil, sys
arguments = sys.argv[1:]
with open("{folder}/calls.jsonl", "a") as file:
    file.write(json.dumps(arguments) + "\\n")
if "bench/tools/gpu_summary.py" in arguments:
    os.execv("{python}", ["{python}", *arguments])
if arguments[0] == "-c" and "capability" in arguments[1]:
    print("90a")
print("closing line")
for argument in arguments:
    if argument.startswith("--benchmark-json="):
        shutil.copy("{folder}/results.json", argument.partition("=")[2])
sys.exit({failing!r} in " ".join(arguments))
"""

TIMEOUT = """#!/bin/sh
shift 2
echo "$1" >>"{folder}/limits"
shift
exec "$@"
"""

SANITIZER = """#!/bin/sh
[ "$1" = --help ] && exec echo "--kernel-name arg"
echo "$@" >>"{folder}/sanitizer"
while [ "$1" != python3 ]; do shift; done
exec "$@"
"""


def rehearse(
    folder: Path, failing: str, groups: int = 3, parts: tuple[str, ...] = ()
) -> tuple[subprocess.CompletedProcess, Any]:
    """Run it; the part whose command has ``failing`` in it fails."""
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    scripts = {"python3": PYTHON, "timeout": TIMEOUT, "compute-sanitizer": SANITIZER}
    for name, text in scripts.items():
        for key, value in {"{python}": sys.executable, "{folder}": str(folder)}.items():
            text = text.replace(key, value)
        (commands / name).write_text(text.replace("{failing!r}", repr(failing)))
        (commands / name).chmod(0o755)
    rows = [(f"op {i} cuda", v, t, 0.1) for i in range(groups) for v, t in
            (("eager", 9.0), ("compile", 4.5), ("cuda", 1.5))]  # fmt: skip
    pytest_file(folder / "results.json", rows, {"limit_seconds": 0.0012})
    run = subprocess.run(
        [str(BENCH / "gpu_check.sh"), "--out", "out", *parts],
        cwd=folder,
        env={**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    newest = max((folder / "out").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return run, json.loads(newest.read_text())


@pytest.mark.slow
def test_runs_every_part_within_nine_minutes(tmp_path: Path) -> None:
    run, result = rehearse(tmp_path, failing="nothing")
    assert run.returncode == 0, run.stdout + run.stderr
    assert [part["name"] for part in result["parts"]] == PARTS
    assert {part["status"] for part in result["parts"]} == {"0"}
    limits = [int(line) for line in (tmp_path / "limits").read_text().split()]
    # The benchmarks share what is left, so here, where nothing takes time, they get the most.
    assert len(limits) == len(PARTS)
    build, side = limits[0], limits[1 : 1 + len(SIDE_BY_SIDE)]
    assert build + 5 + max(side) + 5 + 240 < 525
    assert limits[-1] <= 525 and min(limits) >= 30
    checks = (tmp_path / "sanitizer").read_text().splitlines()
    assert len(checks) == 4
    for line in checks:  # initcheck has to see what torch's kernels write
        assert ("kns=dd2" in line) == ("--tool initcheck" not in line)
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    asked = " ".join(argument for call in calls for argument in call)
    for name in sorted(path.name for path in BENCH.glob("bench_*.py")):
        assert name in asked, f"gpu_check.sh runs no {name}"


@pytest.mark.slow
def test_goes_on_after_a_failure_and_says_which(tmp_path: Path) -> None:
    run, result = rehearse(tmp_path, failing="setup.py")
    assert run.returncode == 1
    assert [part["name"] for part in result["parts"]] == PARTS
    assert [part["name"] for part in result["parts"] if part["status"] != "0"] == ["build"]
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("build")]
    assert "FAILED (1)" in line and "closing line" in line


@pytest.mark.slow
def test_runs_the_parts_asked_for_and_keeps_what_earlier_runs_wrote(tmp_path: Path) -> None:
    run, result = rehearse(tmp_path, failing="setup.py", parts=("build", "sampling"))
    assert [part["name"] for part in result["parts"]] == ["build", "sampling"]
    log = (tmp_path / "out" / "gpu_check.log").read_text()
    assert log.startswith("== build: 1, ") and "== sampling: 0, " in log
    assert log.count("closing line") == 2
    run, result = rehearse(tmp_path, failing="nothing", parts=("training",))
    assert [part["name"] for part in result["parts"]] == ["training"]
    first, second = sorted((tmp_path / "out").glob("*.json"), key=lambda path: len(path.name))
    assert second.stem == f"{first.stem}-2"
    whole = (tmp_path / "out" / "gpu_check.log").read_text()
    assert whole.startswith(log) and "== training: 0, " in whole


def test_the_table_has_each_group_and_its_ratios(tmp_path: Path) -> None:
    run, result = rehearse(tmp_path, failing="nothing")
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("op 2 cuda")]
    # fastest, ms, spread, times eager, times torch.compile, percent of the limit
    assert line.split()[3:9] == ["cuda", "1.500", "7%", "6.0", "3.0", "80"]
    assert {row["variant"] for row in result["benchmarks"]} == {"eager", "compile", "cuda"}
    assert result["benchmarks"][0]["median_ms"] == pytest.approx(9.0)


@pytest.mark.slow
def test_the_table_stays_within_sixty_lines(tmp_path: Path) -> None:
    run, result = rehearse(tmp_path, failing="nothing", groups=80)
    lines = run.stdout.splitlines()
    assert len(lines) == 60
    assert lines[-1].startswith("wrote ") and "more in the JSON" in lines[-2]
    assert len({row["group"] for row in result["benchmarks"]}) == 80


@pytest.mark.parametrize("arguments", [["--out"], ["--fast"]])
def test_refuses_other_arguments(arguments: list[str]) -> None:
    run = subprocess.run([str(BENCH / "gpu_check.sh"), *arguments], capture_output=True, text=True)
    assert run.returncode == 2 and "gpu_check.sh: " in run.stderr


def test_prepared_networks_are_held_to_their_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The better of the prepared ways that are graphs, against what compilation alone gives."""
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.syspath_prepend(BENCH / "tools")
    Row = importlib.import_module("records").Row
    forward_marks = importlib.import_module("gpu_summary").forward_marks
    times = {"trained_compiled_graphs": 10.0, "prepared": 1.0, "prepared_graphs": 9.3}
    rows = [Row("forward cuda var_d16 decoder 64", v, t / 1e3, 0.0) for v, t in times.items()]
    faster = Row(rows[0].group, "prepared_compiled_graphs", 9.1e-3, 0.0)
    assert forward_marks(rows) == [
        "var_d16 decoder 64: prepared_graphs takes 0.93 of compiled, MISSES 0.92"
    ]
    assert forward_marks([*rows, faster, Row("op 1 cuda", "cuda", 1.0, 0.0)]) == [
        "var_d16 decoder 64: prepared_compiled_graphs takes 0.91 of compiled, passes 0.92"
    ]
    assert forward_marks(rows[1:]) == []
    group = "forward cuda var_d16 generator 64"
    times = {"prepared_graphs": 10.0, "fp8_graphs": 9.0, "fp8_compiled_graphs": 8.4, "fp8": 1.0}
    rows = [Row(group, variant, ms / 1e3, 0.0) for variant, ms in times.items()]
    assert forward_marks(rows) == [
        "var_d16 generator 64: fp8_compiled_graphs takes 0.84 of prepared_graphs, passes 0.85"
    ]
    assert "fp8_graphs takes 0.90 of prepared_graphs, MISSES" in forward_marks(rows[:2])[0]


def test_flex_attention_is_held_to_the_calls_by_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.syspath_prepend(BENCH / "tools")
    Row = importlib.import_module("records").Row
    attention_marks = importlib.import_module("gpu_summary").attention_marks
    group = "attention cuda var_d16_batch training"
    rows = [Row(group, "scales", 2e-3, 0.0), Row(group, "flex", 1.9e-3, 0.0)]
    rows.append(Row("attention cuda var_d16", "scales", 1e-3, 0.0))
    assert attention_marks(rows) == [
        "var_d16_batch training: flex takes 0.95 of the calls, passes 1.0"
    ]
    slower = Row(group, "flex", 2.1e-3, 0.0)
    assert "takes 1.05 of the calls, MISSES 1.0" in attention_marks([rows[0], slower])[0]
    assert attention_marks(rows[:1]) == []
