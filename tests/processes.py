"""Fresh interpreters that see the package under test and the tests' helpers, not the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dd2_fast

TESTS = Path(__file__).parent
PACKAGE_ROOT = Path(dd2_fast.__file__).parents[1]


def environment(**values: str) -> dict[str, str]:
    """That of this process, but that it is no worker of pytest-xdist, which times no benchmark;
    imports find the package under test, then ``tests``. A process that crashes says where."""
    path = f"{PACKAGE_ROOT}{os.pathsep}{TESTS}"
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    return {**own, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1", **values}


def run_python(*arguments: str, folder: Path, timeout: float = 300, **values: str) -> str:
    """Standard output of ``python *arguments`` started in ``folder``, which must not be the
    checkout: an interpreter looks for modules where it starts. Its errors fail the test."""
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(**values),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout
