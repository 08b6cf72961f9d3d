"""Runs that go on after their end, or from another run's first stage; weights along the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from training.test_distil import SHORT, config, weights
from training.test_faults import interrupt

from dd2_fast.training.recipes import distil
from dd2_fast.training.stages import csd
from dd2_fast.training.state import FINAL, STATE

ONE = {**SHORT["distill"], "align_steps": 0}
# At a constant rate the steps of a longer run are those of a shorter one, and then some.
ONE |= {"hold": 1.0, "guidance_floor": 1.0}


def steps(count: int) -> dict:
    return {"distill": {**ONE, "steps": count}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    return distil.run(config("var", **steps(3)), out, progress=False)


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def same(a: Path, b: Path) -> None:
    left, right = weights(a), weights(b)
    assert all(torch.equal(left[name], right[name]) for name in left)
    found = [json.loads((folder / "run.json").read_text()) for folder in (a, b)]
    assert found[0]["losses"] == found[1]["losses"]
    assert found[0]["settings"]["distill"] == found[1]["settings"]["distill"]


def test_more_steps_go_on_from_the_end(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And end where a run ends that had as many from the start; also through an interruption."""
    taken = []
    real = distil.GroundTruthScoreStage.step
    monkeypatch.setattr(
        distil.GroundTruthScoreStage, "step", lambda *a: taken.append(a) or real(*a)
    )
    before = weights(copy)
    interrupt(monkeypatch, copy, 2, **steps(6))
    assert {STATE, FINAL, "run.json"} <= {path.name for path in copy.iterdir()}
    assert all(torch.equal(value, before[name]) for name, value in weights(copy).items())
    distil.run(config("var", **steps(6)), copy, progress=False)
    assert not taken, "stage 1 was not made again"
    whole = distil.run(config("var", **steps(6)), tmp_path / "whole", progress=False)
    same(copy, whole)
    assert (copy / FINAL).exists() and not (copy / STATE).exists()
    logs = [(folder / "log.jsonl").read_text().count('"csd"') for folder in (copy, whole)]
    assert logs == [6, 6]


def test_a_finished_run_is_otherwise_left_alone(copy: Path) -> None:
    before = weights(copy)
    for changes in (
        steps(3),
        steps(2),
        {**steps(6), "seed": 1},
        {"distill": {**ONE, "steps": 9, "batch": 4}},
    ):
        with pytest.raises(FileExistsError, match="found a finished one"):
            distil.run(config("var", **changes), copy, progress=False)
    (copy / FINAL).unlink()
    with pytest.raises(FileExistsError, match="found a finished one"):
        distil.run(config("var", **steps(6)), copy, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in weights(copy).items())


def test_a_kill_before_the_report_loses_nothing(
    finished: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are written and the state is kept, run.json is not there yet."""
    (copy / "run.json").unlink()
    monkeypatch.setattr(csd.CsdStage, "step", lambda *_: pytest.fail("a step was made again"))
    distil.run(config("var", **steps(3)), copy, progress=False)
    same(finished, copy)


def test_the_last_state_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    changes = {**steps(1), "execution": {"keep_state": False}}
    out = distil.run(config("var", **changes), tmp_path, progress=False)
    assert not list(out.glob("*.pt"))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "distill.aligned_steps"),
        (steps(3), "distill.steps"),
        ({"method": "dd1", "regression": {"steps": 3, "batch": 4}}, "regression.steps"),
    ],
)
def test_the_last_stage_is_the_one_that_goes_on(changes: dict, name: str) -> None:
    settings = config("var", **changes)
    networks = distil.Networks(settings, distil.Parallel())
    stages = distil.build_stages(settings, networks, distil.Parallel())
    section, field = name.split(".")
    assert distil.last_steps(settings) == name
    assert stages[-1].steps == getattr(getattr(settings, section), field)
