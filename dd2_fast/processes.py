"""The processes that torchrun started: they leave together, and the first that fails says why."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import operator
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_POLL = 0.05  # seconds between looks at what the others have noted
_PATIENCE = 5.0  # seconds for the first that fails to say why, and for the others to hear it
# Shares of a job may differ by hours; one that dies is noticed at once, by its connection.
_JOB_TIMEOUT = timedelta(days=1)
_LOST = "another process of the job is gone and has not said why; it may have been killed"
# Where torch keeps meshes, by module, and what empties it.
_TENSOR = "torch.distributed.tensor"
_CACHES = (
    ("debug", "_clear_sharding_prop_cache"),
    ("_redistribute", "_gen_transform_infos.cache_clear"),
    ("_redistribute", "clear_redistribute_planner_cache"),
    ("_collective_utils", "MeshTopoInfo.build_from_mesh.cache_clear"),
)
# What a collective raises where the process at its other end is gone.
_GONE = re.compile(r"gloo/|nccl|connection (closed|reset)|broken pipe", re.IGNORECASE)


class ProcessFailed(RuntimeError):
    """Another process of the job failed, and says why."""


class ProcessLost(ConnectionError):
    """Another process of the job ended without a word."""


class Job:
    """This process among those of a job; ``rank`` of ``count``.

    ``store`` is where they leave notes for one another, None where there is one process.
    """

    def __init__(self, rank: int, count: int, store: Any = None) -> None:
        self.rank, self.count, self.store = rank, count, store
        self._meetings = self._groups = 0
        self._failed_first = rank

    @contextlib.contextmanager
    def as_one(self) -> Iterator[None]:
        """All processes leave the block together, and an error of one ends it for all.

        The first that fails raises its own error. The others raise ProcessFailed as soon as they
        wait for it, in a collective or at the end of the block.

        Raises:
            ProcessLost: another process is gone and none has noted an error.
        """
        try:
            yield
            self._meet()
        except ProcessFailed:
            raise
        except Exception as error:
            if not self._fails_first():
                raise self._other_failed() from error
            if _tells_of_a_loss(error):
                raise ProcessLost(_LOST) from error
            raise
        except BaseException:
            self._fails_first()
            raise

    @contextlib.contextmanager
    def telling(self) -> Iterator[bool]:
        """Whether this process is to say why the job failed; the others wait until it has."""
        store, speaks = self.store, self._failed_first == self.rank
        if store is None:
            yield True
            return
        gc.collect()  # networks of the error's frames: they hold the group that the others wait in
        with contextlib.suppress(RuntimeError):  # of a store that is gone
            if not speaks:
                _wait(lambda: store.check(["told"]))
        yield speaks
        with contextlib.suppress(RuntimeError):
            if not speaks:
                store.add("heard", 1)
                return
            store.set("told", "")
            if self.rank == 0:  # the store may live in this process
                _wait(lambda: store.add("heard", 0) >= self.count - 1)

    def store_of_a_group(self) -> Any:
        """A part of the store for the next process group alone."""
        from torch import distributed

        self._groups += 1
        return distributed.PrefixStore(f"group {self._groups}", self.store)

    def _meet(self) -> None:
        """Wait for all processes, however long: a collective would give up after a time."""
        if self.store is None:
            return
        self._meetings += 1
        arrived, left = (f"{what} {self._meetings}" for what in ("arrived", "left"))
        self.store.add(arrived, 1)
        self._wait_for_all(arrived)
        self.store.add(left, 1)
        if self.rank == 0:  # the store may live in this process
            self._wait_for_all(left)

    def _wait_for_all(self, counter: str) -> None:
        while self.store.add(counter, 0) < self.count:
            if self.store.check(["failed"]):
                self._failed_first = int(self.store.get("failed"))
                raise self._other_failed()
            time.sleep(_POLL)

    def _fails_first(self) -> bool:
        """Note that this process failed; whether none had before."""
        if self.store is not None:
            try:
                self._failed_first = int(self.store.compare_set("failed", "", str(self.rank)))
            except RuntimeError:  # the store is gone with the process that it lived in
                self._failed_first = 0
        return self._failed_first == self.rank

    def _other_failed(self) -> ProcessFailed:
        return ProcessFailed(f"process {self._failed_first} of {self.count} failed and says why")


_current: Job | None = None
_jobs = 0


def place() -> tuple[int, int]:
    """This process's number among those that torchrun started, and how many there are.

    Without torchrun 0 and 1.

    Raises:
        ValueError: WORLD_SIZE or RANK, as torchrun sets them, are no such numbers; an empty one is
            as none.
    """
    count = _number("WORLD_SIZE", 1, default=1)
    return (_number("RANK", 0, count - 1) if count > 1 else 0), count


@contextlib.contextmanager
def together() -> Iterator[Job]:
    """The job that torchrun started this process for: see :meth:`Job.as_one`.

    Without torchrun it has one process. Blocks may lie in one another and follow one another, the
    same ones in every process.

    Raises:
        ValueError: what :func:`place` raises.
        ProcessLost: the processes do not find one another.
    """
    global _current, _jobs
    if _current is not None:
        with _current.as_one():
            yield _current
        return
    rank, count = place()
    if count == 1:
        yield Job(0, 1)
        return
    _jobs += 1
    _current = Job(rank, count, _store(rank, count, f"dd2_fast {_jobs}"))
    try:
        with _current.as_one():
            yield _current
    finally:
        _current = None


@contextlib.contextmanager
def process_group(backend: str | None = "gloo") -> Iterator[tuple[int, torch.device | None]]:
    """This process's rank in the group that torchrun started, joined meanwhile, and its device.

    Without torchrun 0 and None. All processes leave the block together, see :meth:`Job.as_one`. A
    group that the caller has made is taken as it is.

    Args:
        backend: of torch.distributed; None takes NCCL for CUDA tensors and gloo for the others.

    Raises:
        ValueError: WORLD_SIZE, RANK or LOCAL_RANK, as torchrun sets them, are no such numbers.
    """
    import torch
    from torch import distributed

    with together() as job:
        made_here = not (distributed.is_available() and distributed.is_initialized())
        if made_here and job.count == 1:
            yield 0, None
            return
        device = None
        if torch.cuda.is_available():
            device = torch.device("cuda", _number("LOCAL_RANK", 0, torch.cuda.device_count() - 1))
            torch.cuda.set_device(device)
        if not made_here:
            yield distributed.get_rank(), device
            distributed.barrier()
            return
        # Gloo's threads end with the last that holds the group. One that frees a Python tensor as
        # the interpreter ends aborts the process ("terminate called without an active exception").
        # Functions of this module hold the group of their first import: there is none yet.
        import torch.distributed.nn.functional

        jobs = backend == "gloo"
        if backend is None:
            backend = "gloo" if device is None else "cpu:gloo,cuda:nccl"
        distributed.init_process_group(
            backend,
            store=job.store_of_a_group(),
            rank=job.rank,
            world_size=job.count,
            timeout=_JOB_TIMEOUT if jobs else None,
        )
        try:
            with job.as_one():
                yield job.rank, device
        finally:
            _forget_meshes()
            gc.collect()  # networks that hold it
            distributed.destroy_process_group()


def _forget_meshes() -> None:
    """Empty the caches of torch's that hold every device mesh, and so its group, for ever.

    Those of DTensor, with which FSDP2 shards: what an operator makes of shardings (one cache is
    C++), and ways from one sharding to another.
    """
    if _TENSOR not in sys.modules:
        return
    for name, call in _CACHES:
        with contextlib.suppress(ImportError, AttributeError):  # another version's
            operator.attrgetter(call)(importlib.import_module(f"{_TENSOR}.{name}"))()


@functools.cache
def _meeting_place(rank: int, count: int) -> Any:
    from torch import distributed

    try:
        return next(distributed.rendezvous("env://", rank, count))[0]
    except RuntimeError as error:
        where = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise ProcessLost(f"MASTER_ADDR, MASTER_PORT: no process answers at {where}") from error


def _store(rank: int, count: int, prefix: str) -> Any:
    from torch import distributed

    return distributed.PrefixStore(prefix, _meeting_place(rank, count))


def _number(name: str, low: int, high: int | None = None, default: int | None = None) -> int:
    """A number of the environment's that is at least ``low``; empty is as not there."""
    text = os.environ.get(name, "").strip()
    if not text and default is not None:
        return default
    if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
        wanted = f"at least {low}" if high is None else f"a number in {low}..{high}"
        raise ValueError(f"{name}: expected {wanted}, as torchrun sets it, got {text!r}")
    return int(text)


def _tells_of_a_loss(error: Exception) -> bool:
    """Whether it is what a collective or the store raises where another process is gone."""
    from torch.distributed import DistError

    if isinstance(error, DistError):
        return True
    return isinstance(error, RuntimeError) and _GONE.search(str(error)) is not None


def _wait(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not ready() and time.monotonic() < end:
        time.sleep(_POLL)
