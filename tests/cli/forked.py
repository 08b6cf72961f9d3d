"""Commands in two forked processes that meet as torchrun's do: exit codes and what they print."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from training.forked import run

from dd2_fast.cli import main
from dd2_fast.sampling import PngFolder
from dd2_fast.training import loop
from dd2_fast.training.samples import make_shards
from dd2_fast.training.state import RunState

SHORT = ("stage1.head_steps=1", "stage1.steps=1", "distill.guidance_start=1", "distill.steps=2")
LEAST = (*SHORT, "distill.align_steps=0", "watch.tensorboard=false", "watch.images_every=0")
TRAIN = ["train", "tiny_var", "--quiet", *(f"--set={setting}" for setting in LEAST)]
TOY = ["train", "toy", *(f"--set={s}" for s in (*SHORT, "pairs.count=64", "pairs.batch=32"))]
TOY += ["--set=evaluation_samples=500", "--set=regression.steps=2", "--set=watch.tensorboard=false"]


def command(argv: list[str], rank: int) -> str:
    """What ``dd2-fast`` returns and prints, as JSON."""
    streams = {}
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        stream.flush()
        streams[number] = open(f"{number}-{rank}", "w+")  # noqa: SIM115 (the process ends)
        os.dup2(streams[number].fileno(), number)
    code = main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    return json.dumps([code, *(Path(streams[number].name).read_text() for number in (1, 2))])


def usage_error(rank: int) -> str:
    return command(["sample", "--nonsense"], rank)


def the_same_error(rank: int) -> str:
    return command(["train", "nonsense"], rank)


def alone(rank: int) -> str:
    return command(["info"], rank)


def one_picture(rank: int) -> str:
    return command(["sample", "--labels", "1,2", "--out", "a.png", "--quiet"], rank)


def a_model_is_missing(rank: int) -> str:
    model = "digits" if rank == 0 else "missing/model"
    argv = ["sample", "--num", "4", "--out", "images", "--quiet", "--model", model]
    return command(argv, rank)


def a_write_fails(rank: int) -> str:
    def write(*_: object) -> None:
        raise OSError(28, "No space left on device", "images/000001_1.png")

    if rank == 1:
        PngFolder.write = write  # type: ignore[method-assign]
    argv = ["sample", "--num", "4", "--batch-size", "1", "--out", "full", "--quiet"]
    return command(argv, rank)


def the_end_fails(rank: int) -> str:
    def finish(*_: object) -> None:
        raise OSError(28, "No space left on device", "shards/manifest.json")

    make_shards._finish = finish
    argv = ["make-data", "digits", "--num", "4", "--shard-size", "2", "--out", "shards", "--quiet"]
    return command(argv, rank)


def a_teacher_is_missing(rank: int) -> str:
    teacher = [] if rank == 0 else ["--teacher", "missing.pt"]
    return command([*TRAIN, *teacher, "--out", "run"], rank)


def a_run_is_finished(rank: int) -> str:
    if rank == 0:
        Path("finished").mkdir()
        Path("finished/run.json").write_text("{}")
    return command([*TRAIN, "--out", "finished"], rank)


def _at_step(number: int, act: Callable[[], object]) -> None:
    """Do something after so many steps of a run."""
    report, count = loop._report, iter(range(1, 10**6))

    def reported(*arguments: object) -> None:
        report(*arguments)  # type: ignore[arg-type]
        if next(count) == number:
            act()

    loop._report = reported  # type: ignore[assignment]


def the_folder_is_deleted(rank: int) -> str:
    if rank == 0:
        _at_step(2, lambda: shutil.rmtree("deleted"))
    return command([*TRAIN, "--out", "deleted"], rank)


def one_is_terminated(rank: int) -> str:
    if rank == 1:
        _at_step(2, lambda: signal.raise_signal(signal.SIGTERM))
    return command([*TRAIN, "--out", "stopped"], rank)


def one_goes_on_without_the_state(rank: int) -> str:
    """As a node that does not see the others' folder."""
    if rank == 1:
        read = RunState._read
        RunState._read = lambda self, path: read(self, Path("elsewhere", path.name))  # type: ignore
    return command([*TRAIN, "--out", "stopped"], rank)


def both_go_on(rank: int) -> str:
    return command([*TRAIN, "--out", "stopped"], rank)


def one_is_killed(rank: int) -> str:
    if rank == 1:
        _at_step(2, lambda: os.kill(os.getpid(), signal.SIGKILL))
    return command([*TRAIN, "--out", "killed"], rank)


def toy_is_not_shared(rank: int) -> str:
    return command([*TOY, "--quiet", "--out", "toy"], rank)


SCENARIOS = (
    usage_error,
    the_same_error,
    alone,
    one_picture,
    a_model_is_missing,
    a_write_fails,
    the_end_fails,
    a_teacher_is_missing,
    a_run_is_finished,
    the_folder_is_deleted,
    one_is_terminated,
    one_goes_on_without_the_state,
    both_go_on,
    one_is_killed,
    toy_is_not_shared,
)

if __name__ == "__main__":
    run(SCENARIOS, Path(sys.argv[1]))
