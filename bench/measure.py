"""Times, memory and physical limits of the variants of one problem, checked before they are timed.

The variants take turns, round by round, and the order of a round changes from one to the next: what
else the machine does hits all of them. On a GPU a round starts with a cold L2 and takes the next of
several sets of inputs, and events time the device's work: the launches hide behind the cache's
flush.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dd2_fast.ops import available_backends

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FEWEST_TURNS, MOST_TURNS = 5, 8
MOST_REPEATS = 5  # of a fast variant in one turn
_LONG = 5.0  # seconds of a call, which one measurement tells well enough to plan by
_FLUSH_BYTES = 2**29  # ten times an H200's L2, and longer than a launch takes

Call = Callable[[], Any]


@dataclass
class Problem:
    """What the variants of a group compute, and what it costs at the least.

    Args:
        make: a variant's name to its calls, one for each set of inputs.
        check: a variant's name and its first call to what to report of the result, mostly its
            error; raises AssertionError for a wrong one.
        bytes: of every input read once and every output written once.
        flops: of the products that cannot be avoided, a multiply-add counted as two; where variants
            differ, what ``check`` reports as "flops" counts, and where they compute in another
            precision, its "rate_of" names that for the limit ("bfloat16").
        seconds: of timing, for each variant.
        fewest_turns: whatever that takes.
    """

    group: str
    device: str
    make: Callable[[str], list[Call]]
    check: Callable[[str, Call], dict[str, Any]]
    bytes: float = 0
    flops: float = 0
    seconds: float = 0.5
    fewest_turns: int = FEWEST_TURNS
    info: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """Seconds of every round, and what ``extra_info`` says of a variant; or why there is none."""

    rounds: list[float] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None


def usable(device: str) -> list[str]:
    """The backends that can run on ``device``."""
    return [name for name, reason in available_backends(device).items() if reason is None]


def input_sets(device: str) -> int:
    """How many sets of inputs a problem should rotate through."""
    return 2 if device == "cuda" else 1


def run(problem: Problem, variants: list[str]) -> dict[str, Outcome]:
    """Check every variant, then time them in turns; one that fails leaves the others."""
    outcomes, calls = {name: Outcome() for name in variants}, {}
    for name in variants:
        try:
            outcomes[name].info, calls[name] = _prepare(problem, name)
        except (Exception, pytest.skip.Exception) as error:
            outcomes[name].error = error
    timer = Timer(problem.device)
    estimate = {name: _estimated(timer, own[0]) for name, own in calls.items()}
    turns = int(problem.seconds * len(calls) / max(sum(estimate.values()), 1e-9))
    turns = min(max(turns, problem.fewest_turns), MOST_TURNS)
    for turn in range(turns):
        for name in _rotated(list(calls), turn):
            repeats = int(problem.seconds / turns / max(estimate[name], 1e-9))
            for _ in range(min(max(repeats, 1), MOST_REPEATS)):
                done = outcomes[name].rounds
                done.append(timer(calls[name][len(done) % len(calls[name])]))
    for name in calls:
        outcome = outcomes[name]
        flops = outcome.info.get("flops", problem.flops)
        dtype = getattr(torch, outcome.info.get("rate_of", ""), None)
        outcome.info.update(_limits(problem, flops, statistics.median(outcome.rounds), dtype))
    return outcomes


def _prepare(problem: Problem, variant: str) -> tuple[dict[str, Any], list[Call]]:
    """What is known before timing, and warmed-up calls."""
    calls = problem.make(variant)
    checked = problem.check(variant, calls[0])
    for call in calls:
        call()
    info = {**problem.info, "variant": variant, "device": problem.device, **checked}
    info["peak_bytes"] = added_memory(calls[0], problem.device)
    return info, calls


def _estimated(timer: Timer, call: Call) -> float:
    """Seconds of a call, of one if it is long."""
    first = timer(call)
    return first if first > _LONG else statistics.median([first, timer(call)])


def _rotated(names: list[str], by: int) -> Iterator[str]:
    return (names[(i + by) % len(names)] for i in range(len(names)))


def _limits(
    problem: Problem, flops: float, median: float, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Counted work, the nearer of the two measured limits and how near both are."""
    device = problem.device
    bandwidth = copy_bandwidth(device)
    rate = matrix_rate(device) if dtype is None else matrix_rate(device, dtype)
    moving, computing = problem.bytes / bandwidth, flops / rate
    return {
        "bytes": problem.bytes,
        "flops": flops,
        "copy_bandwidth": bandwidth,
        "matrix_rate": rate,
        "limit_seconds": max(moving, computing),
        "limit": "bytes" if moving >= computing else "flops",
        "percent_of_bandwidth": 100 * moving / median,
        "percent_of_matrix_rate": 100 * computing / median,
    }


class Timer:
    """Seconds of one call."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            self.flushed = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def __call__(self, call: Call) -> float:
        if self.device != "cuda":
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        first, last = self.events
        self.flushed.zero_()
        first.record()
        call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3


@functools.cache
def copy_bandwidth(device: str) -> float:
    """Measured bytes a second, read plus written, of a large copy."""
    source = torch.empty(2**30 if device == "cuda" else 2**27, dtype=torch.uint8, device=device)
    source.fill_(1)
    target = torch.empty_like(source)
    return 2 * source.numel() / _fastest(device, lambda: target.copy_(source))


@functools.cache
def matrix_rate(device: str, dtype: torch.dtype | None = None) -> float:
    """Measured FLOP a second of a large matrix product of random numbers, by default in bfloat16 on
    a GPU and float32 on a CPU.

    On a CPU by the faster of MKL and oneDNN: on an EPYC ``torch.mm`` did 0.57 times the FLOP a
    second of a decoder's convolutions (2026-11-28), which is no limit.
    """
    on_gpu = device == "cuda"
    size, dtype = (8192 if on_gpu else 1536), dtype or (torch.bfloat16 if on_gpu else torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    ways = [lambda: torch.mm(a, b)]
    if not on_gpu:
        image = a.reshape(1, size, 32, size // 32).contiguous(memory_format=torch.channels_last)
        weight = b.reshape(size, size, 1, 1)
        ways.append(lambda: F.conv2d(image, weight))
    return max(2 * size**3 / _fastest(device, way) for way in ways)


def _fastest(device: str, call: Call) -> float:
    """A limit is what the machine can do, so the best of some."""
    timer = Timer(device)
    return min(timer(call) for _ in range(12))


def added_memory(call: Call, device: str) -> int | None:
    """Bytes that a call adds at its peak to what was there; None where the system cannot tell.

    On a CPU it is the growth of the resident set's high-water mark, after what the allocator held
    back was returned.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the mark becomes the present size
        before = _status("VmRSS")
        call()
        return max(_status("VmHWM") - before, 0)
    except (OSError, AttributeError):
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def free_memory(device: str) -> int:
    """Bytes that new tensors may take."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()  # what torch holds for later would count as taken
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def relative_error(value: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((value - wanted).norm() / wanted.norm()).item()
