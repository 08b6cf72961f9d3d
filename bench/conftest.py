"""Benchmarks check their result first, then time it; the summary gives ratios within one run."""

from __future__ import annotations

import itertools
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
import machine
import measure
from records import times_faster

Race = Callable[[Callable[[], measure.Problem]], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-threads", type=int, default=0, help="CPU threads (0: torch's own)")
    parser.addoption(
        "--bench-budget",
        type=float,
        default=float("inf"),
        help="seconds after which no further group is begun (their benchmarks are skipped)",
    )


def pytest_configure() -> None:
    """A part of gpu_check.sh whose time is up writes what it has: as at Ctrl-C, pytest ends."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt("no time left")

    signal.signal(signal.SIGTERM, stop)


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Any:
    wanted, before = request.config.getoption("--bench-threads"), torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def copy_bandwidth() -> Callable[[str], float]:
    """Measured bytes a second, read plus written, of a large copy on a device."""
    return measure.copy_bandwidth


class Replay:
    """The clock of pytest-benchmark for rounds that were timed before: one goes by at each call."""

    __name__ = "perf_counter_or_cuda_events"

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


_CLOCK = Replay()
_STARTED = time.monotonic()
_LOAD = machine.Load()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Raced benchmarks report by the replayed clock. Without timing only the tiny ones run, and not
    torch.compile, whose minutes would tell nothing."""
    raced = [item for item in items if _is_raced(item)]
    for item in raced:
        item.add_marker(pytest.mark.benchmark(timer=_CLOCK))
    if config.getoption("benchmark_disable"):
        params = {item: item.callspec.params for item in raced}
        left = [
            item
            for item in raced
            if not params[item]["size"].startswith(("tiny", "digits_1"))
            or params[item]["variant"] == "compile"
        ]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The rounds of a raced group belong together: :func:`race` asks for itself."""
    if not _is_raced(item):
        _skip_late(item.config)


def _skip_late(config: pytest.Config) -> None:
    if time.monotonic() - _STARTED > config.getoption("--bench-budget"):
        pytest.skip("no time left of --bench-budget")


@pytest.fixture
def race(request: pytest.FixtureRequest, benchmark: Any, _outcomes: dict) -> Race:
    """Times this variant and, in turns with it, the others of its group that were selected.

    The first of a group measures them all; each then reports its own rounds.
    """
    group, variant = _group(request.node)

    def report(build: Callable[[], measure.Problem]) -> None:
        if benchmark.disabled:
            problem = build()
            calls = problem.make(variant)
            problem.check(variant, calls[0])
            benchmark.pedantic(calls[-1])
            return
        if group not in _outcomes:
            _skip_late(request.config)
            others = (_group(item) for item in request.session.items if _is_raced(item))
            problem = build()
            outcomes = measure.run(problem, [v for g, v in others if g == group])
            _outcomes.clear()  # results hold no tensors, but nobody asks for an old group again
            _outcomes[group] = (problem.group, outcomes)
        name, outcomes = _outcomes[group]
        outcome = outcomes[variant]
        if outcome.error is not None:
            raise outcome.error
        benchmark.group = name
        benchmark.extra_info.update(outcome.info)
        rounds = itertools.cycle(outcome.rounds)
        benchmark.pedantic(lambda: _CLOCK.advance(next(rounds)), rounds=len(outcome.rounds))

    return report


@pytest.fixture(scope="session")
def _outcomes() -> dict[Any, tuple[str, dict[str, measure.Outcome]]]:
    return {}


def _is_raced(item: pytest.Item) -> bool:
    return "race" in getattr(item, "fixturenames", ())


def _group(item: Any) -> tuple[Any, str]:
    """What the variants of a problem have in common, and which this is."""
    params = dict(item.callspec.params)
    variant = params.pop("variant")
    return (item.path, item.originalname, tuple(sorted(params.items()))), variant


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    threads = config.getoption("--bench-threads") or torch.get_num_threads()
    machine.describe(machine_info, threads)


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict) -> None:
    """Rounds and what names people stay out of files that are committed."""
    for bench in output_json["benchmarks"]:
        bench["stats"].pop("data", None)
    commit = output_json.pop("commit_info", {})
    output_json["commit"] = {key: commit.get(key) for key in ("id", "dirty")}
    output_json["machine_info"]["load"] = _LOAD.seen()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for bench in getattr(session, "benchmarks", []):
        if bench.group and "variant" in bench.extra_info:
            groups[bench.group][bench.extra_info["variant"]] = bench
    if not groups:
        return
    line = terminalreporter.line
    terminalreporter.section("ratios of medians, one run")
    line(
        f"{'':44} {'ms':>9} {'spread':>7} {'x eager':>8} {'x compile':>10} {'% limit':>8} {'MB':>8}"
    )
    for group, variants in sorted(groups.items()):
        for name, bench in variants.items():
            line(_row(f"{group} {name}", bench, variants))
    line("spread: IQR over median; x eager (or the teacher, the reference trainer), x compile: how")
    line("many times faster; % limit: of the measured copy bandwidth or matrix rate, whichever is")
    line("nearer, by counted bytes and FLOPs; MB: memory that a call adds at its peak")
    busy = machine.warning(_LOAD.seen())
    if busy:
        line(f"warning: {busy}", yellow=True)


def _row(label: str, bench: Any, variants: dict[str, Any]) -> str:
    median, info = bench.stats.median, bench.extra_info
    ratios = times_faster(variants, median, lambda bench: bench.stats.median)
    faster = [f"{ratio:.1f}" if ratio else "" for ratio in ratios]
    limit, peak = info.get("limit_seconds"), info.get("peak_bytes")
    near = f"{100 * limit / median:.1f}" if limit else ""
    memory = f"{peak / 1e6:.1f}" if peak is not None else ""
    spread = f"{100 * bench.stats.iqr / median:.0f}%"
    row = f"{label:44} {median * 1e3:9.3f} {spread:>7} {faster[0]:>8} {faster[1]:>10}"
    return f"{row} {near:>8} {memory:>8}"
