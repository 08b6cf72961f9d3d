"""Work in processes of their own that need not import torch: forks of one server that has.

Like a fresh interpreter's, their threads, signals, memory and standard streams are theirs alone;
unlike it they end without finalizing Python. The server itself never computes, so that forks of
it may (those of a process whose OpenMP or CUDA is in use may not).
"""

from __future__ import annotations

import faulthandler
import functools
import importlib
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from processes import environment

TESTS = Path(__file__).parent
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["torch", "torch.distributed.fsdp", "dd2_fast.cli", "dd2_fast.training.recipes.distil"]
)


@functools.cache
def _start_server() -> None:
    """Away from the checkout, where an interpreter would find the package that is not installed."""
    here = os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        os.chdir("/")
        try:
            forkserver.ensure_running()
        finally:
            os.chdir(here)


@dataclass(frozen=True)
class Ended:
    """``code`` as of subprocess: negative for a signal; ``output`` of both standard streams."""

    code: int
    output: str


def _run(
    work: tuple[str, str], arguments: tuple, folder: Path, values: dict[str, str], log: str
) -> None:
    os.chdir(folder)
    os.environ.update(values)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 (the process ends)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    faulthandler.enable(sys.stderr)

    import torch

    torch.set_num_threads(1)
    module, name = work
    try:
        getattr(importlib.import_module(module), name)(*arguments)
    finally:
        sys.stdout.flush()


class Forked:
    """One process that works in ``folder``."""

    def __init__(
        self, work: Callable[..., object], *arguments: Any, folder: Path, log: str, **values: str
    ) -> None:
        _start_server()
        self.log = folder.parent / f"{folder.name}.{log}"
        # pytest has names of its own for the modules of tests.
        module = ".".join(Path(work.__code__.co_filename).relative_to(TESTS).with_suffix("").parts)
        given = ((module, work.__name__), arguments, folder, values, str(self.log))
        self.process = _context.Process(target=_run, args=given)
        self.process.start()

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def end(self, timeout: float = 300) -> Ended:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"still running after {timeout} s: {self.output()}")
        return Ended(self.process.exitcode, self.output())


def run_forked(work: Callable[..., object], *arguments: Any, folder: Path, **values: str) -> Ended:
    """``work(*arguments)`` in a process; ``work`` is a module's function."""
    return Forked(work, *arguments, folder=folder, log="log", **values).end()


def run_together(work: Callable[..., object], *arguments: Any, folder: Path) -> list[str]:
    """What two processes print that meet as torchrun's do. An error of one fails the test."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = [
        Forked(
            work, *arguments, folder=folder, log=f"log{rank}",
            **place, WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank),
        )
        for rank in range(2)
    ]  # fmt: skip
    ended = [process.end() for process in ranks]
    assert [one.code for one in ended] == [0, 0], "\n".join(one.output for one in ended)
    return [one.output for one in ended]


def command(argv: list[str]) -> None:
    """``dd2-fast`` with these arguments."""
    from dd2_fast.cli import main

    sys.exit(main(argv))
