"""Fresh interpreters that see the package under test and the tests' helpers, not the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import dd2_fast

TESTS = Path(__file__).parent
PACKAGE_ROOT = Path(dd2_fast.__file__).parents[1]
# Of C++, where a thread is cut off. One run under torchrun of about a hundred ended so, with no
# error of Python's (2026-11-29); it could not be made to happen again.
_ENDED_A_THREAD = "terminate called without an active exception"


def environment(**values: str) -> dict[str, str]:
    """That of this process; imports find the package under test, then ``tests``. A process that
    crashes says where."""
    path = f"{PACKAGE_ROOT}{os.pathsep}{TESTS}"
    return {**os.environ, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1", **values}


def run_python(*arguments: str, folder: Path, timeout: float = 300, **values: str) -> str:
    """Standard output of ``python *arguments`` started in ``folder``, which must not be the
    checkout: an interpreter looks for modules where it starts. Its errors fail the test."""

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment(**values),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    run = start()
    if run.returncode and _ENDED_A_THREAD in run.stderr:
        warnings.warn(f"torchrun's process aborted, run again:\n{run.stderr}", stacklevel=2)
        run = start()
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout
