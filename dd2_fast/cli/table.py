"""The table of `dd2_fast.metrics.evaluate`, as text."""

from __future__ import annotations

from collections.abc import Mapping

NAMES = {
    "reconstruction": "real, tokenized",
    "teacher": "teacher",
    "one_step": "one step",
    "set_prediction": "set prediction",
    "stage1": "stage 1, one step",
}


def quality_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return one line a row of `evaluate`'s result, in its order, under a heading."""
    lines = [f"{'':<20}{'accuracy':>10}{'FD':>9}{'FD class':>10}{'FD pixel':>10}{'NLL':>8}"]
    lines += [
        f"{name:<20}{rows[key]['accuracy']:>10.3f}{rows[key]['fd']:>9.2f}"
        f"{rows[key]['fd_class']:>10.2f}{rows[key]['fd_pixel']:>10.3f}{rows[key]['nll']:>8.3f}"
        for key, name in NAMES.items()
        if key in rows
    ]
    return "\n".join(lines)
