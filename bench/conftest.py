"""Benchmarks check their result first, then time it; the summary gives ratios within one run."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch

BASELINES = (("eager", "teacher"), ("compile",))  # of each column, whichever a group has


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-threads", type=int, default=0, help="CPU threads (0: torch's own)")


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Any:
    wanted, before = request.config.getoption("--bench-threads"), torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def copy_bandwidth() -> Callable[[str], float]:
    """Measured bytes a second, read plus written, of a large copy on a device."""
    measured: dict[str, float] = {}

    def measure(device: str) -> float:
        if device not in measured:
            source = torch.empty(
                2**30 if device == "cuda" else 2**27, dtype=torch.uint8, device=device
            )
            source.fill_(1)
            target = torch.empty_like(source)
            seconds = []
            for _ in range(12):
                synchronize(device)
                start = time.perf_counter()
                target.copy_(source)
                synchronize(device)
                seconds.append(time.perf_counter() - start)
            measured[device] = 2 * source.numel() / statistics.median(seconds[2:])
        return measured[device]

    return measure


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    from dd2_fast.ops import extension, nvrtc

    module, reason = extension.load()
    cupy, missing = nvrtc.load()
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = config.getoption("--bench-threads") or torch.get_num_threads()
    machine_info["extension"] = dict(module.build_info) if module else reason
    machine_info["nvrtc"] = cupy.cuda.nvrtc.getVersion() if cupy else missing
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for bench in getattr(session, "benchmarks", []):
        if bench.group and "variant" in bench.extra_info:
            groups[bench.group][bench.extra_info["variant"]] = bench
    if not groups:
        return
    terminalreporter.section("ratios of medians, one run")
    header = f"{'':44} {'ms':>9} {'x eager':>8} {'x compile':>10} {'x limit':>8}"
    terminalreporter.line(header)
    for group, variants in sorted(groups.items()):
        for name, bench in variants.items():
            median, limit = bench.stats.median, bench.extra_info.get("limit_seconds")
            faster = []
            for names in BASELINES:
                base = next((variants[name] for name in names if name in variants), None)
                faster.append(f"{base.stats.median / median:.1f}" if base else "")
            near = f"{median / limit:.1f}" if limit else ""
            row = f"{group + ' ' + name:44} {median * 1e3:9.3f} {faster[0]:>8} {faster[1]:>10}"
            terminalreporter.line(f"{row} {near:>8}")
    terminalreporter.line("x eager (or the teacher), x compile: how many times faster;")
    terminalreporter.line("x limit: time over counted bytes at the measured copy bandwidth")
