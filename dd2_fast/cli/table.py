"""The table of `dd2_fast.metrics.evaluate`, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


_COLUMNS = {  # of the evaluation of images: heading and decimals
    "accuracy": ("accuracy", 3),
    "fd": ("FD", 2),
    "fd_class": ("class", 2),
    "fd_pixel": ("pixel", 3),
    "to_teacher": ("FD", 3),
    "to_teacher_class": ("class", 2),
    "to_teacher_pixel": ("pixel", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "nll": ("NLL", 3),
    "ms": ("ms", 2),
}
_ORDER = ("real", "reconstruction", "teacher", "one_step", "dd1", "set_prediction", "stage1")
_WIDTH = 10
_NAME = 22


def evaluation_table(told: Mapping[str, Any]) -> str:
    """Return what `dd2_fast.metrics.image_report.evaluate_images` found: one line a row, and what
    the tokenizer and the teacher are worth."""
    rows = told["rows"]
    shown = [name for name in _COLUMNS if any(name in row for row in rows.values())]
    to_real = sum(name in ("fd", "fd_class", "fd_pixel") for name in shown)
    to_teacher = sum(name.startswith("to_teacher") for name in shown)
    above = " " * (_NAME + _WIDTH * ("accuracy" in shown))
    above += f"{'to held-out images':>{_WIDTH * to_real}}"
    if to_teacher:
        above += f"{'to the teacher':>{_WIDTH * to_teacher}}"
    lines = [above, " " * _NAME + "".join(f"{_COLUMNS[n][0]:>{_WIDTH}}" for n in shown)]
    for name, row in sorted(rows.items(), key=lambda pair: _place(pair[0])):
        cells = [f"{row[n]:.{_COLUMNS[n][1]}f}" if n in row else "" for n in shown]
        lines.append(f"{_row_name(name):<{_NAME}}" + "".join(f"{c:>{_WIDTH}}" for c in cells))
    lines.append(
        f"reconstruction MSE {told['reconstruction_mse']:.5f}, "
        f"{100 * told['codes_used']:.1f}% of the codes used"
        + (
            f", teacher's NLL of held-out images {told['held_out_nll']:.3f} nats a token"
            if "held_out_nll" in told
            else ""
        )
    )
    return "\n".join(lines)


def _place(key: str) -> tuple[int, str, int]:
    """Where a row stands: JSON files keep no order."""
    kind = "one_step" if key.startswith("one_step") else key
    name, _, number = key.rpartition("_")
    after = (name, int(number)) if number.isdecimal() else (key, 0)
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER), *after


def _row_name(key: str) -> str:
    name, _, number = key.rpartition("_")
    if name == "one_step_jacobi":
        return f"one step + {number} pass{'es' * (number != '1')}"
    if key.startswith("one_step_"):
        return f"one step + {int(number) - 1} teacher's"
    return {**NAMES, "dd1": "DD1, one step"}.get(key, key.replace("_", " "))
