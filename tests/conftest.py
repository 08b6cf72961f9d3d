from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch loads its threads

import pytest
import torch

try:
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # a machine for GPU tests alone
    collect_ignore_glob = ["ops/test_*_properties.py"]
else:
    settings.register_profile("ci", derandomize=True, deadline=None)
    settings.register_profile(
        "explore", max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck)
    )
    settings.load_profile("ci")


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """``-n auto``: a core each, and memory for a gigabyte each."""
    return min(CORES, 8)


def pytest_configure() -> None:
    """Workers side by side share the cores, and so do the processes that they start."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if workers > 1:
        threads = os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CORES // workers)))
        torch.set_num_threads(int(threads))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test draws the same inputs in every run and in every order."""
    torch.manual_seed(0)
