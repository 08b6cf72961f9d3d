"""Commands under torchrun: they end well, print once, and an error of one is one line of all."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli.forked import LEAST
from optional import require
from processes import environment, run_python

from dd2_fast import checkpoints
from dd2_fast.cli import main
from dd2_fast.training.watch import read_log

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("forked")
    printed = run_python("-m", "cli.forked", str(folder), folder=folder, timeout=600)
    return folder, json.loads(printed)


# What the first process that fails prints, after "dd2-fast: error: ", and which that is (None: it
# may be either).
ERRORS = {
    "usage_error": (None, r"the following arguments are required: --out \(see .*\)"),
    "the_same_error": (None, "recipe: expected one of digits, .* got 'nonsense'"),
    "a_model_is_missing": (1, "model: no file or folder at 'missing/model'; .*"),
    "a_write_fails": (1, "images/000001_1.png: No space left on device"),
    "the_end_fails": (None, "shards/manifest.json: No space left on device"),
    "a_teacher_is_missing": (1, "missing.pt: expected a checkpoint file, found none"),
    "a_run_is_finished": (0, "finished: expected an empty folder or an interrupted run, found .*"),
    "the_folder_is_deleted": (0, "deleted/log.jsonl: cannot write: No such file or directory"),
    "one_goes_on_without_the_state": (1, "elsewhere/state.pt: expected a saved training state, .*"),
}


@pytest.mark.parametrize("scenario", ERRORS)
def test_an_error_is_one_line_of_one_process(forked, scenario: str) -> None:
    rank, message = ERRORS[scenario]
    results = [json.loads(result) for result in forked[1][scenario]]
    assert [code for code, *_ in results] == [2, 2]
    assert all(out == "" for _, out, _ in results)
    texts = [error for *_, error in results]
    assert sum(text != "" for text in texts) == 1, texts
    rank = int(texts[0] == "") if rank is None else rank
    pattern = rf"dd2-fast: error: {message} \(process {rank} of 2\)\n"
    assert re.fullmatch(pattern, texts[rank]), texts


def test_the_others_of_a_killed_process_say_so(forked) -> None:
    first, second = forked[1]["one_is_killed"]
    code, out, error = json.loads(first)
    assert second == "killed" and code == 2 and out == ""
    assert error == (
        "dd2-fast: error: another process of the job is gone and has not said why; it may have "
        "been killed (process 0 of 2)\n"
    )


def test_a_signal_to_one_stops_all_and_both_go_on(forked) -> None:
    folder, results = forked
    stopped = [json.loads(result) for result in results["one_is_terminated"]]
    assert [code for code, *_ in stopped] == [130, 130]
    line = "\ndd2-fast: stopped in stage1 at step 2; the same command continues from stopped\n"
    assert sorted(error for *_, error in stopped) == ["", line]
    going_on = [json.loads(result) for result in results["both_go_on"]]
    assert going_on == [[0, "wrote stopped\n", ""], [0, "", ""]]
    assert checkpoints.load(folder / "stopped" / "generator.safetensors")


def test_what_is_not_shared_is_done_once(forked) -> None:
    folder, results = forked
    first, second = (json.loads(result) for result in results["one_picture"])
    assert first == [0, "wrote 2 images to a.png\n", ""] and second == [0, "", ""]
    first, second = (json.loads(result) for result in results["alone"])
    assert first[0] == 0 and first[1].startswith("dd2_fast") and second == [0, "", ""]
    first, second = (json.loads(result) for result in results["toy_is_not_shared"])
    said = "the recipe toy is not shared: one process of 2 trains\nwrote toy\n"
    assert first == [0, said, ""] and second == [0, "", ""]
    steps = [line.step for line in read_log(folder / "toy/log.jsonl") if line.stage == "distill"]
    assert sorted(set(steps)) == [1, 2]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


COMMANDS = {
    "train": ["train", "tiny_var", *(f"--set={setting}" for setting in LEAST)],
    "sample": ["sample", "--num", "6", "--batch-size", "2"],
    "make-data": ["make-data", "digits", "--num", "6", "--shard-size", "2"],
}
OUT = {"train": "run", "sample": "a.npz", "make-data": "shards"}
WROTE = {
    "train": "wrote run\n",
    "sample": "wrote 6 images to a.npz\n",
    "make-data": "wrote 6 samples in 3 shards to shards\n",
}


@pytest.mark.parametrize(
    "command",
    ["train", *(pytest.param(c, marks=pytest.mark.long) for c in ("sample", "make-data"))],
)
def test_torchrun_ends_well_though_the_end_takes_seconds(command: str, tmp_path: Path) -> None:
    """The store is in the first process here, as without --standalone."""
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}")
    argv = [*COMMANDS[command], "--quiet", "--out", OUT[command]]
    printed = run_python(*torchrun, "-m", "--", "cli.slow", *argv, folder=tmp_path)
    assert printed == WROTE[command]
    if command == "train":
        assert json.loads((tmp_path / "run/run.json").read_text())["processes"] == 2
        assert checkpoints.load(tmp_path / "run/generator.safetensors")
    elif command == "sample":
        with np.load(tmp_path / "a.npz") as archive:
            assert archive["arr_0"].shape == (6, 8, 8, 3)
    else:
        assert len(list((tmp_path / "shards").glob("*.safetensors"))) == 3


def test_torchrun_of_what_fails_prints_one_line(tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    argv = ("-m", "--", "dd2_fast", "train", "tiny_var", "--teacher", "none.pt", "--out", "run")
    run = subprocess.run(
        [sys.executable, *torchrun, *argv],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode != 0
    assert run.stderr.count("dd2-fast: error: none.pt: expected a checkpoint file") == 1
    assert run.stderr.count("Traceback") == 1, "torchrun's own"


def test_curves_of_a_recipe_that_is_not_shared(forked, tmp_path: Path, capsys) -> None:
    require("matplotlib")
    out = tmp_path / "curves.png"
    assert main(["plot", str(forked[0] / "toy"), "--out", str(out)]) == 0
    assert "of distill" in capsys.readouterr().out and out.exists()
