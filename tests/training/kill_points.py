"""Kills a job that writes shards at every operation on its files, and lets it go on each time.

Run as a program in an empty folder; prints how many moments there were.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from dd2_fast.losses import TeacherScore
from dd2_fast.models import TableTeacher
from dd2_fast.training.samples.make_shards import make_shards

NUM, SHARD = 23, 9
EVENTS = ("open", "os.rename", "os.remove")


def make(folder: Path) -> int:
    teacher = TableTeacher(
        num_tokens=2,
        vocabulary=3,
        dimension=1,
        joint=torch.arange(9.0).view(3, 3),
        codebook=torch.tensor([[-1.0], [0.0], [1.0]]),
    )
    score = TeacherScore(teacher)
    return make_shards(score, folder, num=NUM, seed=4, shard_size=SHARD, batch_size=4)


def killed_at(moment: int, folder: Path) -> None:
    """Make the shards, but die as by kill -9 before an operation on the folder's files."""
    seen = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event in EVENTS and str(arguments[0]).startswith(str(folder)):
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(watch)
    make(folder)


def in_child(work: Callable[[], object]) -> int:
    """The exit status of a child that does the work."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main() -> None:
    torch.set_num_threads(1)  # forked children have no pool of threads
    here = Path.cwd()
    assert make(here / "whole") == NUM
    expected = contents(here / "whole")
    assert len(expected) == 1 + 3, list(expected)
    moment = 0
    while True:
        folder = here / f"killed-{moment}"
        status = in_child(lambda: killed_at(moment, folder))  # noqa: B023
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        whole = [p for p in folder.glob("shard-*.safetensors")] if folder.exists() else []
        kept = sum(5 if p.name == "shard-00002.safetensors" else SHARD for p in whole)
        assert make(folder) == NUM - kept, moment
        assert contents(folder) == expected, moment
        moment += 1
    print(moment)


if __name__ == "__main__":
    main()
