"""NVTX ranges where the nvtx package is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import run_python


@pytest.mark.slow
def test_sampling_and_training_do_without_nvtx(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['nvtx'] = None\n"
        "import dd2_fast, dd2_fast.training.samples.draws\n"
        "from dd2_fast.ranges import annotate\n"
        "with annotate('a range'): images = dd2_fast.sample('digits', 1)\n"
        "assert images.shape == (1, 3, 8, 8)\n"
    )
    run_python("-c", code, folder=tmp_path)
