"""profile_stage.py at tiny size on the CPU: its trace holds the ranges of the steps after the
warm-up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import run_python
from result_files import BENCH

OPERATORS = ["conditional_score", "csd_loss", "sample_code", "nearest_code", "flow_solve",
             "linear_conditional_score", "logit_distillation_loss"]  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "ranges"),
    [
        ("operators", OPERATORS),
        ("sampling", ["sampling"]),
        pytest.param(
            "training",
            ["gts_head", "gts_whole", "fcs", "distill", "adaptation"],
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.slow
def test_writes_a_trace(tmp_path: Path, stage: str, ranges: list[str]) -> None:
    arguments = [stage, "--warmup", "1", "--steps", "2", "--trace", "trace.json", "--device", "cpu"]
    out = run_python(str(BENCH / "tools" / "profile_stage.py"), *arguments, folder=tmp_path)
    assert "wrote trace.json" in out
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    for name in ranges:
        steps = [event for event in events if event.get("name") == name and event["ph"] == "X"]
        assert len(steps) >= 2 and all(event["dur"] > 0 for event in steps), name
    # Work is inside them, not only ranges.
    assert any(str(event.get("name")).startswith("aten::") for event in events)


@pytest.mark.slow
def test_a_stage_by_itself_and_its_default_name(tmp_path: Path) -> None:
    out = run_python(
        str(BENCH / "tools" / "profile_stage.py"),
        "gts_head",
        "--steps",
        "1",
        "--device",
        "cpu",
        folder=tmp_path,
    )
    assert "wrote gts_head-tiny.json" in out
    assert (tmp_path / "gts_head-tiny.json").stat().st_size > 1000
