"""The scripts of bench/, found from here, and result files made up for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parents[1] / "bench"


def pytest_file(
    path: Path, rows: list[tuple[str, str, float, float]], extra: dict[str, Any] | None = None
) -> Path:
    """As ``--benchmark-json`` writes it, of (group, variant, median and IQR in ms)."""
    benchmarks = [
        {
            "group": group,
            "name": f"bench[{group}-{variant}]",
            "extra_info": {"variant": variant, **(extra or {})},
            "stats": {"median": median / 1e3, "iqr": iqr / 1e3, "rounds": 9},
        }
        for group, variant, median, iqr in rows
    ]
    machine = {"cpu": {"brand_raw": "A CPU"}, "threads": 2, "torch": "2.0"}
    content = {"machine_info": machine, "benchmarks": benchmarks, "datetime": "2026-01-02T03:04:05"}
    path.write_text(json.dumps(content))
    return path


def gpu_check_file(
    path: Path, rows: list[tuple[str, str, float, float]], gpu: str = "A GPU"
) -> Path:
    """As ``gpu_check.sh`` writes it."""
    benchmarks = [
        {"group": group, "variant": variant, "median_ms": median, "iqr_ms": iqr}
        for group, variant, median, iqr in rows
    ]
    parts = [{"name": "build", "status": "0", "seconds": 12.0, "closing": ["done"]}]
    machine = {"gpu": gpu, "torch": "2.0", "commit": "0123456789"}
    path.write_text(json.dumps({"machine": machine, "parts": parts, "benchmarks": benchmarks}))
    return path
