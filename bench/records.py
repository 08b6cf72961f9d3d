"""Result files of any age: those of ``pytest --benchmark-json`` and of ``gpu_check.sh``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

# What a group is measured against: plain code, or what took its place; and the same compiled.
BASELINES = (("eager", "teacher", "reference"), ("compile",))
# Of the processors that others use, what moves times by more than their spread.
BUSY = 0.05


@dataclass(frozen=True)
class Row:
    """One variant of one group; times in seconds."""

    group: str
    variant: str
    median: float
    iqr: float
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.group} {self.variant}"

    @property
    def words(self) -> tuple[str, str, str]:
        """Benchmark, device and size, as every group is named."""
        bench, device, size = (self.group.split(" ", 2) + ["", ""])[:3]
        return bench, device, size

    @property
    def spread(self) -> float:
        """The IQR over the median."""
        return self.iqr / self.median if self.median else 0.0


@dataclass(frozen=True)
class Record:
    """A file: what was run, on what, and for ``gpu_check.sh`` how its parts ended."""

    name: str
    machine: dict[str, Any]
    rows: list[Row]
    parts: list[dict[str, Any]] = field(default_factory=list)
    commit: str | None = None
    date: str | None = None

    @property
    def others(self) -> float:
        """The share of the processors that other processes had; 0 where the file does not say."""
        return float((self.machine.get("load") or {}).get("others", 0.0))

    @property
    def device(self) -> str:
        """The GPU's name, or the processor's with its threads."""
        if self.machine.get("gpu"):
            return str(self.machine["gpu"])
        processor = (self.machine.get("cpu") or {}).get("brand_raw") or "unnamed CPU"
        threads = self.machine.get("threads")
        return f"{processor}, {threads} threads" if threads else str(processor)


def load(path: Path | str) -> Record:
    """Read one file.

    Raises:
        ValueError: not JSON, or without benchmarks. OSError: it cannot be read.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("benchmarks"), list):
        raise ValueError(f"{path}: expected a result file with benchmarks")
    rows = _with_limits([_row(bench) for bench in content["benchmarks"]])
    machine = content.get("machine_info", content.get("machine")) or {}
    commit = content.get("commit") or machine.get("commit")
    date = content.get("datetime") or content.get("date")
    return Record(
        name=path.name,
        machine=machine,
        rows=rows,
        parts=content.get("parts") or [],
        commit=commit.get("id") if isinstance(commit, dict) else commit,
        date=date[:10] if date else None,
    )


def _row(bench: dict[str, Any]) -> Row:
    """Of pytest-benchmark's entry, or of ``gpu_check.sh``'s flat one."""
    group = bench.get("group") or bench.get("name") or ""
    if "stats" in bench:
        extra, stats = bench.get("extra_info") or {}, bench["stats"]
        median, iqr = stats["median"], stats.get("iqr", 0.0)
    else:
        known = ("group", "median_ms", "iqr_ms")
        extra = {key: value for key, value in bench.items() if key not in known}
        median, iqr = bench["median_ms"] / 1e3, bench.get("iqr_ms", 0.0) / 1e3
    variant = extra.get("variant") or bench.get("param") or ""
    return Row(group, variant, median, iqr, extra)


def _with_limits(rows: list[Row]) -> list[Row]:
    """The rows with no rate of arithmetic above the limit: what a machine did it can do, so the
    highest rate of a run counts where it is above that of the measured matrix product."""
    rates: dict[tuple[str, str], float] = {}
    for row in rows:
        key = _arithmetic(row)
        if row.extra.get("matrix_rate") and key is not None and row.median:
            reached = row.extra.get("flops", 0) / row.median
            rates[key] = max(rates.get(key, 0.0), row.extra["matrix_rate"], reached)
    return [_with_limit(row, rates) for row in rows]


def _arithmetic(row: Row) -> tuple[str, str] | None:
    """Device and precision that a row's rate is of; None where the file measured no such rate, as
    those before 2026-11-30 for bfloat16 on a CPU."""
    device, low = row.words[1], "bf16" in row.variant
    if device == "cpu" and low and "rate_of" not in row.extra:
        return None
    return device, row.extra.get("rate_of", "")


def _with_limit(row: Row, rates: dict[tuple[str, str], float]) -> Row:
    if "matrix_rate" not in row.extra:
        return row
    extra, key = dict(row.extra), _arithmetic(row)
    if key in rates:
        extra["matrix_rate"] = rates[key]
        moving = extra.get("bytes", 0) / extra["copy_bandwidth"]
        extra["limit_seconds"] = max(moving, extra.get("flops", 0) / rates[key])
    else:
        extra.pop("limit_seconds", None)
        extra.pop("matrix_rate")
    return replace(row, extra=extra)


def groups(rows: list[Row]) -> dict[str, dict[str, Row]]:
    """The variants of every group, both in the order of the file."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.group, {})[row.variant] = row
    return found


def times_faster(
    variants: dict[str, Any], median: float, seconds: Callable[[Any], float]
) -> list[float | None]:
    """How many times each of :data:`BASELINES` takes ``median``; ``seconds`` reads a variant's."""
    ratios: list[float | None] = []
    for names in BASELINES:
        base = next((variants[name] for name in names if name in variants), None)
        ratios.append(seconds(base) / median if base is not None else None)
    return ratios
