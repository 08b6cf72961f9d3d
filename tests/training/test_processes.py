"""Two processes as torchrun starts them: they leave together, and one says what went wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import run_python

from dd2_fast.cli import main
from dd2_fast.processes import place

FAILED = "ProcessFailed: process {} of 2 failed and says why"
EXPECTED = {
    "slow_first": [["left", "waited"]],
    "slow_second": [["waited", "left"]],
    "fails_before_a_collective": [[FAILED.format(1), "FileNotFoundError: teacher.pt"]],
    "fails_while_the_other_waits": [["OSError: disk full", FAILED.format(0)]],
    "both_fail": [
        ["ValueError: seed: expected an int", FAILED.format(0)],
        [FAILED.format(1), "ValueError: seed: expected an int"],
    ],
    "one_speaks": [
        ["True, told: True", "False, told: True"],
        ["False, told: True", "True, told: True"],
    ],
    "one_is_killed": [
        [
            "ProcessLost: another process of the job is gone and has not said why; "
            "it may have been killed",
            "killed",
        ]
    ],
    "the_stores_home_is_killed": [["killed", FAILED.format(0)]],
    "jobs_follow_one_another": [["[3, 3]", "[3, 3]"]],
    "no_thread_outlives_the_group": [["True []", "True []"]],
    "the_callers_group": [["True", "True"]],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("forked")
    return json.loads(run_python("-m", "training.forked", str(folder), folder=folder))


@pytest.mark.parametrize("scenario", EXPECTED)
def test_two_processes(results: dict[str, list[str]], scenario: str) -> None:
    assert results[scenario] in EXPECTED[scenario]


def test_every_scenario_is_looked_at(results: dict[str, list[str]]) -> None:
    assert results.keys() == EXPECTED.keys()


def test_empty_variables_are_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    assert place() == (0, 1)
    argv = ["sample", "--labels", "1", "--out", str(tmp_path / "a"), "--quiet"]
    assert main(argv) == 0
    monkeypatch.setenv("WORLD_SIZE", " 3 ")
    monkeypatch.setenv("RANK", "2")
    assert place() == (2, 3)


@pytest.mark.parametrize("command", ["sample", "make-data", "train", "info"])
@pytest.mark.parametrize(
    ("world", "rank", "message"),
    [
        ("two", "0", "WORLD_SIZE: expected at least 1, as torchrun sets it, got 'two'"),
        ("0", "0", "WORLD_SIZE: expected at least 1, as torchrun sets it, got '0'"),
        ("-2", "0", "WORLD_SIZE: expected at least 1, as torchrun sets it, got '-2'"),
        ("2", "2", "RANK: expected a number in 0..1, as torchrun sets it, got '2'"),
        ("2", "", "RANK: expected a number in 0..1, as torchrun sets it, got ''"),
        ("2", "1.0", "RANK: expected a number in 0..1, as torchrun sets it, got '1.0'"),
    ],
)
def test_nonsense_is_one_line(monkeypatch, capsys, command, world, rank, message) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("RANK", rank)
    assert main([command]) == 2
    assert capsys.readouterr().err == f"dd2-fast: error: {message}\n"


def test_a_variable_that_is_missing_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert main(["info"]) == 2
    error = capsys.readouterr().err
    assert "MASTER_ADDR expected, but not set" in error and error.count("\n") == 1
