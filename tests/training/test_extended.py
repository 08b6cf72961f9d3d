"""Runs that go on after their end, or from another run's first stage; weights along the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from forks import run_together
from training.test_distil import FAMILIES, SHORT, config, weights, worst_difference
from training.test_faults import interrupt

from dd2_fast import checkpoints
from dd2_fast.checkpoints import load
from dd2_fast.cli import main
from dd2_fast.sampling import Sampler
from dd2_fast.training.recipes import distil
from dd2_fast.training.recipes.distil import DistilConfig
from dd2_fast.training.stages import csd
from dd2_fast.training.state import FINAL, STATE, lasting_settings

ONE = {**SHORT["distill"], "align_steps": 0}
# At a constant rate the steps of a longer run are those of a shorter one, and then some.
ONE |= {"hold": 1.0, "guidance_floor": 1.0}
ALONE = ("--set", "regression.steps=1", "--set", "method=dd1")


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


def brief(family: str, **changes) -> DistilConfig:
    """A run of few steps behind stage 1."""
    return config(family, **{**steps(2), **changes})


@pytest.fixture(scope="module", params=FAMILIES)
def first(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = brief(request.param, execution={"keep_every": 1})
    return distil.run(settings, tmp_path_factory.mktemp("first") / request.param, progress=False)


def test_stage_1_of_another_run(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends as a run that makes its own, also when it is interrupted and the other is gone."""
    for stage in (distil.GroundTruthScoreStage, distil.AdaptationStage):
        monkeypatch.setattr(stage, "step", lambda *_: pytest.fail("it was made again"))
    other = Path(shutil.copytree(first, tmp_path / "other"))
    settings = brief(first.name, start=f"{other}:stage1")
    interrupt(monkeypatch, tmp_path / "run", 3, family=first.name, start=settings.start, **steps(2))
    shutil.rmtree(other)
    distil.run(settings, tmp_path / "run", progress=False)
    left, right = weights(first), weights(tmp_path / "run")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert report["losses"].keys() == {"guidance", "distill"}
    assert (tmp_path / "run" / "teacher.safetensors").exists() == (first.name == "llamagen")


def test_stage_1_must_be_what_this_run_would_make(first: Path, tmp_path: Path) -> None:
    start = f"{first}:stage1"
    other = brief(first.name, start=start, stage1={"rate": 1e-4}, score={"cfg": 1.0}, seed=1)
    message = r"score\.cfg \(there 2\.0, now 1\.0\), stage1\.rate \(.*\), teacher_sha256 \(there '"
    with pytest.raises(ValueError, match=message):
        distil.run(other, tmp_path / "a", progress=False)
    if first.name == "var":
        foreign = config("llamagen", start=start)
        with pytest.raises(FileNotFoundError, match="no teacher.safetensors in"):
            distil.run(foreign, tmp_path / "b", progress=False)
    with pytest.raises(FileNotFoundError, match="expected a run that has kept its stage 1"):
        distil.run(brief("var", start=f"{tmp_path}:stage1"), tmp_path / "c", progress=False)
    again = brief(first.name, start=start, overwrite=True)
    with pytest.raises(ValueError, match="expected an input that the run does not replace"):
        distil.run(again, first, progress=False)


def test_weights_along_the_way(first: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (first / "weights").iterdir())
    assert names == ["distill-0000001.safetensors", "distill-0000002.safetensors"]
    last = checkpoints.load(first / "weights" / names[-1]).state_dict()
    end = checkpoints.load(first / "generator.safetensors").state_dict()
    assert all(torch.equal(value, end[name]) for name, value in last.items())
    images = Sampler(first / "weights" / names[0])([1])
    assert images.isfinite().all()
    settings = brief(first.name, overwrite=True, execution={"keep_every": 2})
    copy = Path(shutil.copytree(first, tmp_path / "copy"))
    distil.run(settings, copy, progress=False)
    assert [path.name for path in (copy / "weights").iterdir()] == names[1:]


def go_on_and_start(family: str, folder: Path) -> None:
    for name, changes in (
        ("extended", steps(2)),
        ("extended", steps(4)),
        ("started", {**steps(4), "start": f"{folder / 'extended'}:stage1"}),
    ):
        distil.run(brief(family, **changes), folder / name, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_go_on_and_start_from_another_run(family: str, tmp_path: Path) -> None:
    """And end where one process ends that made all steps of every stage."""
    run_together(go_on_and_start, family, tmp_path, folder=tmp_path)
    whole = distil.run(brief(family, **steps(4)), tmp_path / "whole", progress=False)
    logs = {}
    for name in ("extended", "started"):
        assert worst_difference(tmp_path / name, whole) < 1e-4
        report = json.loads((tmp_path / name / "run.json").read_text())
        assert report["processes"] == 2 and report["settings"]["distill"]["steps"] == 4
        logs[name] = (tmp_path / name / "log.jsonl").read_text()
        assert logs[name].count('"csd"') == 4
        if family == "llamagen":
            states = [load(d / "teacher.safetensors") for d in (tmp_path / name, whole)]
            for value, wanted in zip(*(s.state_dict().values() for s in states), strict=True):
                torch.testing.assert_close(value, wanted, atol=1e-4, rtol=0)
    assert '"gts"' in logs["extended"] and '"gts"' not in logs["started"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["tiny_var", "--from", "runs/a"], "start: expected RUN:stage1, got 'runs/a'"),
        (["tiny_var", "--from", "runs/a:distill"], "start: expected RUN:stage1"),
        (["tiny_var", "--from", ":stage1"], "start: expected RUN:stage1"),
        (["digits", "--from", "runs/a:stage1"], "--from: the recipe digits has no run"),
        (
            [
                "tiny_var",
                "--from",
                "a:stage1",
                "--set",
                "regression.steps=1",
                "--set",
                "method=dd1",
            ],
            "start: expected nothing for method dd1",
        ),
    ],
)
def test_where_to_start_is_checked_first(argv, message: str, tmp_path: Path, capsys) -> None:
    assert main(["train", *argv, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_states_of_before_the_setting_fit() -> None:
    assert "start" not in lasting_settings(config("var"))
    assert lasting_settings(config("var", start="a:stage1"))["start"] == "a:stage1"
