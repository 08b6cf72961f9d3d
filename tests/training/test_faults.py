"""Kills, full disks, damaged states and bad losses of a loaded teacher's recipe."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Forked, command, run_forked, run_together
from pairwise import slow_except
from torch import distributed
from training.test_distil import config, weights

from dd2_fast import checkpoints
from dd2_fast.training import loop
from dd2_fast.training.recipes import distil
from dd2_fast.training.state import PREVIOUS, STATE, RunState


def run_with_faults(kill: str, size: int) -> None:
    """A run into ``out`` that saves at every step. ``kill`` is "NAME:N" to be killed before the
    N-th time that a file moves to NAME, or empty; ``size`` is the most that a file may have."""
    RunState.due = lambda self: True  # type: ignore[method-assign]
    name, _, number = kill.partition(":")
    replace, left = os.replace, [int(number or 0)]

    def counted(source: str, target: str) -> None:
        left[0] -= os.path.basename(target) == name
        if number and not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = counted
    if size:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    distil.run(config("var"), Path("out"), progress=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distil.run(config("var"), tmp_path_factory.mktemp("whole") / "run", progress=False)


def assert_same(a: Path, b: Path) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    losses = [json.loads((folder / "run.json").read_text())["losses"] for folder in (a, b)]
    assert losses[0] == losses[1]
    logs = [
        [
            (line["stage"], line["step"], line["values"])
            for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines())
            if "images_per_second" not in line["values"]
        ]
        for folder in (a, b)
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("kill", ["state.pt:1", "state.previous.pt:1", "state.pt:2", "state.pt:9"])
@pytest.mark.slow
def test_killed_between_any_two_moves_of_files(whole: Path, tmp_path: Path, kill: str) -> None:
    killed = run_forked(run_with_faults, kill, 0, folder=tmp_path)
    assert killed.code == -signal.SIGKILL, killed.output
    states = {path.name for path in (tmp_path / "out").glob("state*.pt")}
    left = {"state.pt:1": set(), "state.previous.pt:1": {STATE}}
    assert states == left.get(kill, {PREVIOUS}) and not (tmp_path / "out" / "run.json").exists()
    distil.run(config("var"), tmp_path / "out", progress=False)
    assert_same(whole, tmp_path / "out")


def test_full_disk_keeps_the_last_state(whole: Path, tmp_path: Path) -> None:
    """A limit on the size of files is a full disk to whoever writes: stage 1's state fits, that of
    stage 2 with another optimiser does not."""
    killed = run_forked(run_with_faults, "state.previous.pt:4", 0, folder=tmp_path)
    assert killed.code == -signal.SIGKILL, killed.output
    size = (tmp_path / "out" / STATE).stat().st_size
    full = run_forked(run_with_faults, "", size + 4096, folder=tmp_path)
    assert full.code == 1 and "cannot write: File too large" in full.output, full.output
    left = sorted(path.name for path in (tmp_path / "out").iterdir() if "state" in path.name)
    assert left == [PREVIOUS, STATE]
    torch.load(tmp_path / "out" / STATE, weights_only=True)
    distil.run(config("var"), tmp_path / "out", progress=False)
    assert_same(whole, tmp_path / "out")


def interrupt(
    monkeypatch: pytest.MonkeyPatch, folder: Path, calls: int, family: str = "var", **changes
) -> None:
    """Start a run that is told to stop after so many steps."""
    real, count = loop._report, iter(range(1, 10**6))

    def report(*arguments):
        real(*arguments)
        if next(count) == calls:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_report", report)
        with pytest.raises(loop.Interrupted, match="the same command continues"):
            distil.run(config(family, **changes), folder, progress=False)


@pytest.mark.parametrize("calls", slow_except([1, 4, 6, 9, 12, 15], 4, 12))
def test_stopped_runs_continue(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    interrupt(monkeypatch, tmp_path, calls)
    distil.run(config("var"), tmp_path, progress=False)
    assert_same(whole, tmp_path)


def test_a_damaged_state_gives_way_to_the_one_before(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, tmp_path, 8)
    interrupt(monkeypatch, tmp_path, 2)
    state = tmp_path / STATE
    state.write_bytes(state.read_bytes()[:-1000])
    with pytest.warns(RuntimeWarning, match="state.pt: expected a saved training state"):
        distil.run(config("var"), tmp_path, progress=False)
    assert_same(whole, tmp_path)
    assert not state.exists() and not (tmp_path / PREVIOUS).exists()


def test_execution_and_watching_may_change_in_between(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, tmp_path, 7, execution={"micro_batch": 4}, watch={"images": 1})
    distil.run(config("var"), tmp_path, progress=False)
    left, right = weights(whole), weights(tmp_path)
    assert max(float((left[k] - right[k]).abs().max()) for k in left) < 1e-4
    interrupted = tmp_path / "other"
    interrupt(monkeypatch, interrupted, 7)
    with pytest.raises(ValueError, match=r"stage1\.draws \(saved 2, now 3\)"):
        distil.run(config("var", stage1={"draws": 3}), interrupted, progress=False)


def stop_one_of_two(sharding: str) -> None:
    """A run into ``out`` whose second process is told to stop after nine steps."""
    real, count = loop._report, iter(range(1, 10**6))

    def report(*arguments: Any) -> None:
        real(*arguments)
        if next(count) == 9 and distributed.get_rank() == 1:  # the other must hear of it
            signal.raise_signal(signal.SIGTERM)

    loop._report = report
    try:
        settings = config("var", execution={"sharding": sharding})
        distil.run(settings, Path("out"), progress=False)
    except loop.Interrupted as stop:
        print(stop)


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_a_run_of_two_processes_stops_and_goes_on_with_one(
    whole: Path, tmp_path: Path, sharding: str
) -> None:
    printed = run_together(stop_one_of_two, sharding, folder=tmp_path)
    assert ["stopped in distill at step 2" in output for output in printed] == [True, True]
    distil.run(config("var"), tmp_path / "out", progress=False)
    left, right = weights(whole), weights(tmp_path / "out")
    assert max(float((left[k] - right[k]).abs().max()) for k in left) < 1e-4


NAN = [
    ("stage1", "x", "'gts', got nan; the first tensor that was not finite is x"),
    ("stage1", "logits", "'gts', got nan; the first tensor that was not finite is logits"),
    ("distill", "fake_x0", "'csd', got nan; the first tensor that was not finite is fake_x0"),
]


@pytest.mark.parametrize(("stage", "tensor", "message"), NAN)
@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_its_tensor(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    tensor: str,
    message: str,
) -> None:
    interrupt(monkeypatch, tmp_path, 3 if stage == "stage1" else 9)
    before = (tmp_path / STATE).read_bytes()
    real = loop.Stage.seen

    def poison(self, **value):
        if self.name == stage and tensor in value:
            value[tensor].detach().view(-1)[0] = torch.nan
        return real(self, **value)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Stage, "seen", poison)
        step = 3 if stage == "stage1" else 2
        with pytest.raises(FloatingPointError, match=f"{stage}, step {step}: .*{message}"):
            distil.run(config("var"), tmp_path, progress=False)
    assert (tmp_path / STATE).read_bytes() == before, "the last good state stays"
    distil.run(config("var"), tmp_path, progress=False)
    assert_same(whole, tmp_path)


def test_sigterm_saves_and_exits_with_its_code(whole: Path, tmp_path: Path) -> None:
    argv = ["train", "tiny_var", "--out", "out", "--quiet", "--set", "distill.steps=100000"]
    process = Forked(command, argv, folder=tmp_path, log="log")
    log = tmp_path / "out" / "log.jsonl"
    for _ in range(1200):
        if log.exists() and '"distill"' in log.read_text():
            break
        time.sleep(0.1)
    process.process.terminate()
    ended = process.end()
    assert ended.code == 130 and "the same command continues" in ended.output
    state = torch.load(tmp_path / "out" / STATE, weights_only=True)
    assert state["stage"] == "distill" and state["step"] > 0
    kept = [path.name for path in (tmp_path / "out").glob("*.safetensors")]
    assert kept == ["stage1.safetensors"]
    assert checkpoints.bundle.SETTINGS not in {p.name for p in (tmp_path / "out").iterdir()}
