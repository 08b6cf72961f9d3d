"""A pytest plugin under which a GPU backend runs on the CPU, as compiled, by :mod:`ptxrun`:

    pytest -p compiled.plugin --executed cuda:90 tests/ops/test_conditional_score.py -k cuda

Tests of the backend take CPU tensors; a test fails whose launches have faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from compiled.backends import installed
from compiled.executor import Executor
from hypothesis import settings
from ops import cases, strategies

EXECUTOR = pytest.StashKey[Executor]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--executed", metavar="BACKEND:ARCH", default="cuda:90")
    parser.addoption("--streamed", action="store_true", help="no row in shared memory (cuda)")
    parser.addoption("--tensor-cores", action="store_true", help="for every score (cuda)")
    parser.addoption("--processors", type=int, default=132, help="multiprocessors of the device")
    parser.addoption("--with-nvcc", metavar="NVCC", help="what the cuda backend is compiled by")


def pytest_configure(config: pytest.Config) -> None:
    backend, arch = config.getoption("--executed").split(":")
    nvcc = config.getoption("--with-nvcc")
    modes = {name: config.getoption(name) for name in ("streamed", "tensor_cores", "processors")}
    executor = config.stash[EXECUTOR] = Executor(int(arch), nvcc=nvcc, **modes)
    stack = ExitStack()
    config.add_cleanup(stack.close)
    stack.enter_context(installed(backend, executor))
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    others = tuple(name for name in cases.GPU_BACKENDS if name != backend)
    patch.setattr(cases, "GPU_BACKENDS", others)
    # Hypothesis' tests have a function of their own.
    place = strategies.device_of
    patch.setattr(strategies, "device_of", lambda name: "cpu" if name == backend else place(name))
    settings.register_profile("executed", max_examples=12, derandomize=True, deadline=None)
    settings.load_profile("executed")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    kernels = config.stash[EXECUTOR].kernels
    terminalreporter.write_line(f"executed: {' '.join(sorted(kernels))}")


@pytest.fixture(autouse=True)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """Whose launches of the test must have no faults."""
    executor = request.config.stash[EXECUTOR]
    executor.clear()
    yield executor
    assert not executor.faults, "\n".join(map(str, executor.faults))
