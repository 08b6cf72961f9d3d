"""Prints the table of ``gpu_check.sh`` and writes its JSON: ``gpu_summary.py WORK_DIR OUT_DIR``."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
from counted import against
from machine import gpu_state
from records import Row, groups, load, times_faster

LINES = 60
# What prepared networks may take at most of the time of compiled ones, both replayed as CUDA
# graphs, by part and images: as a model of launches, products and bytes says.
MARKS = {"generator": {1: 0.75, 64: 0.92}, "decoder": {1: 0.92, 64: 0.92}}
# And generators in float8 of the better of those, by the same model: products 26.9 to 15 of 34.5 ms
# at 64 images of VAR-d16, less what rounding takes.
FP8_MARK = 0.85
FLEX_MARK = 1.0  # FlexAttention in training, of the time of the calls by scale


def read_parts(work: Path) -> list[dict[str, Any]]:
    parts = []
    for line in (work / "parts.tsv").read_text().splitlines():
        name, status, seconds = line.split("\t")
        log = work / f"{name}.log"
        closing = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
        parts.append(
            {"name": name, "status": status, "seconds": float(seconds), "closing": closing}
        )
    return parts


def describe_machine() -> dict[str, Any]:
    info: dict[str, Any] = {"torch": torch.__version__, "gpu": None}
    if torch.cuda.is_available():
        info.update(gpu_state())
    info["commit"] = None
    with contextlib.suppress(OSError):  # no git there
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
        info["commit"] = commit.stdout.strip() or None
    return info


def bench_rows(work: Path) -> list[Row]:
    """Of every benchmark part that wrote results."""
    rows: list[Row] = []
    for path in sorted(work.glob("*.json")):
        try:
            rows += load(path).rows
        except ValueError:  # killed before it had any
            continue
    return rows


def flat(row: Row) -> dict[str, Any]:
    times = {"median_ms": row.median * 1e3, "iqr_ms": row.iqr * 1e3}
    return {"group": row.group, "variant": row.variant, **times, **row.extra}


def table(parts: list[dict[str, Any]], rows: list[Row], most: int = LINES) -> list[str]:
    """One line a part and one a group: its fastest variant, then the others' times."""
    lines = []
    for part in parts:
        verdict = {"0": "ok", "124": "OUT OF TIME", "missing": "MISSING"}.get(
            part["status"], f"FAILED ({part['status']})"
        )
        closing = part["closing"][0][:70] if part["closing"] else ""
        lines.append(f"{part['name']:10} {verdict:12} {part['seconds']:5.0f} s  {closing}")
    lines.append(
        f"{'':42} {'fastest':>12} {'ms':>8} {'spread':>6} {'x eager':>7} {'x comp.':>7} "
        f"{'% limit':>7}  others, ms"
    )
    shown = [_group_line(name, variants) for name, variants in groups(rows).items()]
    left = len(lines) + len(shown) - most
    if left > 0:
        shown = [*shown[: -left - 1], f"and {left + 1} more in the JSON"]
    return lines + shown


def _group_line(name: str, variants: dict[str, Row]) -> str:
    best = min(variants.values(), key=lambda row: row.median)
    ratios = times_faster(variants, best.median, lambda row: row.median)
    faster = [f"{ratio:.1f}" if ratio else "" for ratio in ratios]
    limit = best.extra.get("limit_seconds")
    near = f"{100 * limit / best.median:.0f}" if limit else ""
    others = " ".join(
        f"{row.variant} {row.median * 1e3:.3g}" for row in variants.values() if row is not best
    )
    return (
        f"{name[:42]:42} {best.variant[:12]:>12} {best.median * 1e3:8.3f} {best.spread:6.0%} "
        f"{faster[0]:>7} {faster[1]:>7} {near:>7}  {others}"
    )


def forward_marks(rows: list[Row]) -> list[str]:
    """A line a network of ``bench_forward``: the better prepared way against compilation; and one
    where float8 was timed, against that."""
    lines = []
    for name, variants in groups(rows).items():
        words = name.split()
        if words[0] != "forward":
            continue
        _, _, model, part, images = words
        label, prepared = f"{model} {part} {images}", _fastest(variants, "prepared")
        if "trained_compiled_graphs" in variants and prepared:
            mark = MARKS[part][int(images)]
            base = variants["trained_compiled_graphs"]
            lines.append(_verdict(label, variants[prepared], base, "compiled", mark))
        fp8 = _fastest(variants, "fp8")
        if prepared and fp8:
            lines.append(_verdict(label, variants[fp8], variants[prepared], prepared, FP8_MARK))
    return lines


def attention_marks(rows: list[Row]) -> list[str]:
    """A line a size of ``bench_attention_training``: which networks in training should take."""
    lines = []
    for name, variants in groups(rows).items():
        words = name.split()
        if words[0] == "attention" and words[-1] == "training" and len(variants) > 1:
            flex, calls = variants["flex"], variants["scales"]
            lines.append(_verdict(" ".join(words[2:]), flex, calls, "the calls", FLEX_MARK))
    return lines


def _fastest(variants: dict[str, Row], start: str) -> str | None:
    """Of the ways that are graphs."""
    ways = [v for v in variants if v.startswith(start) and v.endswith("graphs")]
    return min(ways, key=lambda way: variants[way].median, default=None)


def _verdict(label: str, row: Row, base: Row, of: str, mark: float) -> str:
    ratio = row.median / base.median
    verdict = "passes" if ratio <= mark else "MISSES"
    return f"{label}: {row.variant} takes {ratio:.2f} of {of}, {verdict} {mark}"


def unused(path: Path) -> Path:
    """``path``, or with -2, -3, ... where a file is there: parts that run later hide none."""
    names = (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(2))
    return path if not path.exists() else next(name for name in names if not name.exists())


def main() -> int:
    work, out = Path(sys.argv[1]), Path(sys.argv[2])
    parts, rows, info = read_parts(work), bench_rows(work), describe_machine()
    today = datetime.date.today()
    gpu = re.sub(r"[^a-z0-9]+", "-", (info["gpu"] or "no-gpu").lower()).strip("-")
    target = unused(out / f"{gpu}-{today}.json")
    result = {
        "machine": info,
        "date": str(today),
        "parts": parts,
        "benchmarks": [flat(row) for row in rows],
    }
    target.write_text(json.dumps(result, indent=1) + "\n")
    ratios = [*forward_marks(rows), *attention_marks(rows), *against(rows)[:20]]
    print("\n".join([*table(parts, rows, LINES - 1 - len(ratios)), *ratios]))
    print(f"wrote {target}")
    return 0 if all(part["status"] == "0" for part in parts) else 1


if __name__ == "__main__":
    sys.exit(main())
