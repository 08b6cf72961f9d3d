"""Runs each scenario in two processes that find each other as torchrun's do; prints JSON.

One interpreter imports torch for all of them: the processes are its forks.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import distributed

from dd2_fast.processes import ProcessFailed, process_group, together


def threads() -> list[str]:
    """Names of this process's threads that belong to a process group."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def slow_first(rank: int) -> str:
    with together():
        time.sleep(0.0 if rank else 1.0)
        began = time.monotonic()
    waited = time.monotonic() - began
    return "waited" if waited > 0.8 else "left"


def slow_second(rank: int) -> str:
    return slow_first(1 - rank)


def fails_before_a_collective(rank: int) -> str:
    with process_group():
        if rank == 1:
            raise FileNotFoundError("teacher.pt")
        distributed.barrier()
    return "went on"


def fails_while_the_other_waits(rank: int) -> str:
    with process_group():
        distributed.barrier()
        if rank == 0:
            time.sleep(0.5)
            raise OSError("disk full")
    return "went on"


def both_fail(rank: int) -> str:
    with together():
        raise ValueError("seed: expected an int")


def one_speaks(rank: int) -> str:
    job = None
    try:
        with together() as job:
            raise ValueError("seed")
    except (ValueError, ProcessFailed):
        assert job is not None
        with job.telling() as speaks:
            if speaks:
                time.sleep(0.5)
                Path(os.environ["FOLDER"], "told").touch()
        return f"{speaks}, told: {Path(os.environ['FOLDER'], 'told').exists()}"


def one_is_killed(rank: int) -> str:
    with process_group():
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        distributed.barrier()
    return "went on"


def the_stores_home_is_killed(rank: int) -> str:
    with together():
        if rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return "went on"


def jobs_follow_one_another(rank: int) -> str:
    sums = []
    for _ in range(2):
        with together() as job, process_group() as (own, _device):
            assert own == job.rank == rank and job.count == 2
            value = torch.tensor(rank + 1)
            distributed.all_reduce(value)
            sums.append(int(value))
        try:
            with process_group():
                raise ValueError("x")
        except (ValueError, ProcessFailed):
            pass
    return f"{sums}"


def no_thread_outlives_the_group(rank: int) -> str:
    with process_group():
        importlib.import_module("torch.distributed.nn.functional")  # as others' code does
        distributed.barrier()
        inside = bool(threads())
    return f"{inside} {threads()}"


def the_callers_group(rank: int) -> str:
    distributed.init_process_group("gloo")
    with process_group() as (own, _device):
        assert own == rank
        time.sleep(0.0 if rank else 0.5)
    still = distributed.is_initialized()
    distributed.destroy_process_group()
    return f"{still}"


SCENARIOS = (
    slow_first,
    slow_second,
    fails_before_a_collective,
    fails_while_the_other_waits,
    both_fail,
    one_speaks,
    one_is_killed,
    the_stores_home_is_killed,
    jobs_follow_one_another,
    no_thread_outlives_the_group,
    the_callers_group,
)
Scenario = Callable[[int], str]


def _child(scenario: Scenario, rank: int, port: int, folder: Path) -> None:
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "FOLDER": str(folder)}
    os.environ.update(place, WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    try:
        result = scenario(rank)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    (folder / f"{scenario.__name__}-{rank}").write_text(result)
    sys.stdout.flush()
    os._exit(0)


def run(scenarios: Sequence[Scenario], folder: Path) -> None:
    """Run each scenario with the numbers 0 and 1; print ``{its name: [result, result]}``."""
    results: dict[str, list[str]] = {}
    for scenario in scenarios:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(2):
            child = os.fork()
            if child == 0:
                _child(scenario, rank, port, folder)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        files = [folder / f"{scenario.__name__}-{rank}" for rank in range(2)]
        results[scenario.__name__] = [f.read_text() if f.exists() else "killed" for f in files]
    print(json.dumps(results))


if __name__ == "__main__":
    run(SCENARIOS, Path(sys.argv[1]))
