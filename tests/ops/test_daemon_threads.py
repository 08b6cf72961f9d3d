"""A daemon thread in a compiled kernel as the interpreter ends; torch's operators abort there."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import run_python

from dd2_fast.ops import available_backends


@pytest.mark.skipif(
    available_backends("cpu")["cpu"] is not None, reason="needs the compiled extension"
)
@pytest.mark.slow
def test_the_interpreter_ends_well(tmp_path: Path) -> None:
    for _ in range(3):
        run_python("-m", "ops.daemon_thread", "0.3", folder=tmp_path, OMP_NUM_THREADS="1")
