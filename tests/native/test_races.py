"""Races between the threads of a block, as ThreadSanitizer sees them: tests of every kernel once
more, the shim compiled with it and its runtime loaded. Takes minutes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native.build import NATIVE_DIR, compiler_command
from processes import environment

# Tests that between them take every path with barriers; they run fifty times slower.
TESTS = {
    "test_sample_code_kernel": "less_than_a_block or thread_order",
    "test_nearest_code_kernel": "equal_codes",
    "test_flow_solve_kernel": "one_step or blocks_share",
    "test_conditional_score_kernel": "(float32 and (ragged or two_dim_blocks)) or alpha_one "
    "or wide_codes or invalid",
    "test_dense_score_kernel": "thread_order or (draws_filtered and float32) or alpha_one-60",
}
OPTIONS = {
    "ignore_noninstrumented_modules": 1,  # torch
    "report_signal_unsafe": 0,
    "exitcode": 0,
}
RACY = """
import ctypes
from pathlib import Path
from native.build import NATIVE_DIR, build_shared
shim = ctypes.CDLL(str(build_shared([NATIVE_DIR / "shim_selftest.cpp"], Path.cwd())))
assert shim.racing((ctypes.c_float * 32)()) == 0
"""


def runtime() -> str:
    """The library to load ahead of all others; skips where there is none."""
    command = [*compiler_command(), "-print-file-name=libtsan.so"]
    if not sys.platform.startswith("linux") or shutil.which(command[0]) is None:
        pytest.skip("no g++ for Linux")
    found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip("no libtsan beside the compiler")
    if subprocess.run(["setarch", "-R", "true"], capture_output=True).returncode != 0:
        pytest.skip("ThreadSanitizer needs addresses that are not random: no setarch -R")
    return found


def races(folder: Path, *arguments: str) -> str:
    """What ThreadSanitizer reports of ``python *arguments``, which must succeed."""
    options = ":".join(f"{name}={value}" for name, value in OPTIONS.items())
    result = subprocess.run(
        ["setarch", "-R", sys.executable, *arguments],
        cwd=folder,
        env=environment(
            LD_PRELOAD=runtime(),
            TSAN_OPTIONS=f"{options}:log_path={folder / 'report'}",
            DD2_SHIM_FLAGS="-fsanitize=thread -g",
            OMP_NUM_THREADS="1",
        ),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return "".join(path.read_text() for path in sorted(folder.glob("report*")))


@pytest.mark.slow
@pytest.mark.parametrize("module", TESTS)
def test_threads_of_a_block_do_not_race(module: str, tmp_path: Path) -> None:
    report = races(
        tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider",
        str(NATIVE_DIR / f"{module}.py"), "-k", TESTS[module],
    )  # fmt: skip
    assert not report, report


@pytest.mark.slow
def test_a_missing_barrier_is_reported(tmp_path: Path) -> None:
    assert "data race" in races(tmp_path, "-c", RACY)
