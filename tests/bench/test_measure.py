"""measure.py and the fixture over it: turns, failures, limits, memory, and what the JSON holds."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from processes import environment, run_python
from result_files import BENCH


@pytest.fixture(scope="module")
def measure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_measure", BENCH / "measure.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["bench_measure"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def problem(measure: ModuleType, calls: list[str], **options: Any) -> Any:
    def check(variant: str, call: Any) -> dict[str, float]:
        assert variant != "wrong", "wrong is off: not timed"
        return {"error": 0.0, **({"flops": 8.0} if variant == "a" else {})}

    return measure.Problem(
        group="g",
        device="cpu",
        make=lambda variant: [lambda: calls.append(variant)],
        check=check,
        **options,
    )


def test_variants_take_turns_and_a_wrong_one_is_not_timed(measure: ModuleType) -> None:
    calls: list[str] = []
    outcomes = measure.run(problem(measure, calls), ["a", "wrong", "b"])
    assert "wrong" not in calls
    assert isinstance(outcomes["wrong"].error, AssertionError) and not outcomes["wrong"].rounds
    for name in ("a", "b"):
        assert outcomes[name].error is None
        assert len(outcomes[name].rounds) >= measure.FEWEST_TURNS
        assert min(outcomes[name].rounds) > 0
        assert outcomes[name].info["variant"] == name
    assert [outcomes[name].info["flops"] for name in ("a", "b")] == [8.0, 0], "a counts its own"
    changes = sum(x != y for x, y in zip(calls, calls[1:], strict=False))
    assert changes >= measure.FEWEST_TURNS  # one after the other would be a change or two
    turns = "".join(calls)
    assert "ab" in turns and "ba" in turns


def test_the_nearer_limit_counts(measure: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "copy_bandwidth", lambda device: 100.0)
    monkeypatch.setattr(measure, "matrix_rate", lambda device: 1000.0)
    for flops, limit, seconds in ((1000.0, "bytes", 2.0), (4000.0, "flops", 4.0)):
        found = measure._limits(problem(measure, [], bytes=200.0), flops, median=8.0)
        assert (found["limit"], found["limit_seconds"]) == (limit, seconds)
        assert found["percent_of_bandwidth"] == 25.0
        assert found["percent_of_matrix_rate"] == flops / 80


def test_memory_is_what_a_call_adds_at_its_peak(measure: ModuleType) -> None:
    size = 64 * 2**20

    def call() -> None:
        torch.ones(size, dtype=torch.uint8)

    found = measure.added_memory(call, "cpu")
    if found is None:
        pytest.skip("this system does not tell")
    assert 0.9 * size < found < 1.5 * size


def test_ceilings_are_measured(measure: ModuleType) -> None:
    # Between a toy and what no processor of today reaches.
    assert 1e8 < measure.copy_bandwidth("cpu") < 1e13
    assert 1e8 < measure.matrix_rate("cpu") < 1e15


def bench(folder: Path, *arguments: str) -> str:
    """Pytest over one benchmark at its tiny size, without torch.compile."""
    command = ["-m", "pytest", "-c", str(BENCH.parent / "pyproject.toml"), "-p", "no:cacheprovider"]
    files = [str(BENCH / "bench_sample_code.py"), "-q", "-k", "tiny and cpu and not compile"]
    return run_python(*command, *files, *arguments, folder=folder)


@pytest.mark.slow
def test_the_json_says_what_was_measured_and_on_what(tmp_path: Path) -> None:
    out = bench(tmp_path, "--benchmark-only", "--benchmark-json=result.json")
    assert "ratios of medians" in out and "sample_code cpu tiny eager" in out
    content = json.loads((tmp_path / "result.json").read_text())
    machine = content["machine_info"]
    assert machine["torch"] == torch.__version__ and machine["threads"] > 0
    assert set(machine["load"]) == {"start", "end", "others"}
    assert "gpu" in machine and "node" not in machine and "commit_info" not in content
    variants = {row["extra_info"]["variant"]: row for row in content["benchmarks"]}
    assert {"eager", "torch"} <= set(variants)
    for row in variants.values():
        assert row["group"] == "sample_code cpu tiny"
        assert row["stats"]["median"] > 0 and row["stats"]["rounds"] >= 5
        assert row["extra_info"]["bytes"] == 2 * 4 * 16 * 64 + 8 * 16
        assert row["extra_info"]["limit_seconds"] > 0
    assert variants["eager"]["stats"]["median"] != variants["torch"]["stats"]["median"]


def test_the_baseline_keeps_what_the_filters_are_defined_to_keep(tmp_path: Path) -> None:
    """Equal logits at the edge of top-p stay together: bfloat16, as on a GPU, makes many."""
    code = (
        f"import sys; sys.path.append({str(BENCH)!r})\n"
        "import torch, cases\n"
        "from dd2_fast.ops import conditional_score\n"
        "data = cases.score_inputs(cases.Shape(40, 2048, 8, 400, 0.95), 'cpu')\n"
        "data |= {key: data[key].bfloat16() for key in ('logits', 'uncond')}\n"
        "options = cases.operator_arguments(data)\n"
        "x0 = conditional_score(**options, prediction='x0', backend='torch')\n"
        "error = (cases.plain_score(**data) - x0).norm() / x0.norm()\n"
        "assert error < 1e-4, error\n"
    )
    run_python("-c", code, folder=tmp_path)


@pytest.mark.slow
def test_no_group_is_begun_without_time(tmp_path: Path) -> None:
    out = bench(tmp_path, "--benchmark-only", "--bench-budget=0", "-rs")
    assert "no time left of --bench-budget" in out and " passed" not in out


@pytest.mark.slow
def test_what_is_stopped_writes_what_it_measured(tmp_path: Path) -> None:
    (tmp_path / "bench_stopped.py").write_text(
        "import os, signal\n"
        "def bench_first(benchmark): benchmark(int)\n"
        "def bench_second(benchmark): benchmark(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
    )
    for name in ("conftest", "machine", "measure", "records"):
        shutil.copy(BENCH / f"{name}.py", tmp_path)
    command = ["-m", "pytest", "-c", str(BENCH.parent / "pyproject.toml"), "--rootdir=."]
    command += ["-p", "no:cacheprovider", "--benchmark-json=result.json", "bench_stopped.py"]
    run = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and "no time left" in run.stdout, run.stdout + run.stderr
    content = json.loads((tmp_path / "result.json").read_text())
    assert [row["name"] for row in content["benchmarks"]] == ["bench_first"]


@pytest.mark.slow
def test_without_timing_only_tiny_sizes_run(tmp_path: Path) -> None:
    out = bench(tmp_path, "--benchmark-disable", "--collect-only", "-k", "")
    names = [line for line in out.splitlines() if "::" in line]
    assert names and all("[tiny" in name and "compile" not in name for name in names)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("machine")


@pytest.mark.parametrize(
    ("busy", "own", "others"),
    [(4.0, 4.0, 0.0), (10.0, 2.0, 0.4), (10.0, 11.0, 0.0), (2.0, 1.0, 0.05)],
)
def test_the_load_is_what_others_had(
    busy: float, own: float, others: float, machine: ModuleType, monkeypatch
) -> None:
    """In ten seconds of two processors."""
    now = {"busy": 100.0, "own": 7.0, "clock": 50.0}
    monkeypatch.setattr(machine, "_busy_seconds", lambda: now["busy"])
    monkeypatch.setattr(machine, "_own_seconds", lambda: now["own"])
    monkeypatch.setattr(machine.time, "monotonic", lambda: now["clock"])
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    load = machine.Load()
    now.update(busy=100 + busy, own=7 + own, clock=60.0)
    seen = load.seen()
    assert seen["others"] == others
    assert (machine.warning(seen) is not None) == (others > 0.05)


def test_another_process_is_seen(machine: ModuleType) -> None:
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        load = machine.Load()
        while (seen := load.seen()) is not None and not seen["others"]:
            assert machine.time.monotonic() - load.times[2] < 30
    finally:
        other.kill()
        other.wait()
    if seen is None:
        pytest.skip("this system does not tell")
    assert machine.warning(None) is None


def test_systems_that_do_not_tell_are_no_error(machine: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(machine, "_busy_seconds", lambda: None)
    assert machine.Load().seen() is None
