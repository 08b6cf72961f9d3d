"""Prints the table of ``gpu_check.sh`` and writes its JSON: ``gpu_summary.py WORK_DIR OUT_DIR``."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def read_parts(work: Path) -> list[dict[str, Any]]:
    parts = []
    for line in (work / "parts.tsv").read_text().splitlines():
        name, status, seconds = line.split("\t")
        log = work / f"{name}.log"
        closing = log.read_text().strip().splitlines()[-1:] if log.exists() else []
        parts.append(
            {"name": name, "status": status, "seconds": float(seconds), "closing": closing}
        )
    return parts


def machine() -> dict[str, Any]:
    info: dict[str, Any] = {"torch": torch.__version__, "gpu": None}
    if torch.cuda.is_available():
        info["gpu"] = torch.cuda.get_device_name()
        query = "--query-gpu=driver_version,clocks.sm,clocks.mem,temperature.gpu"
        shown = subprocess.run(
            ["nvidia-smi", query, "--format=csv"], capture_output=True, text=True
        )
        info["nvidia_smi"] = shown.stdout.splitlines()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    info["commit"] = commit.stdout.strip() or None
    return info


def bench_rows(work: Path) -> list[dict[str, Any]]:
    path = work / "bench.json"
    if not path.exists() or not path.read_text().strip():
        return []
    rows = []
    for bench in json.loads(path.read_text())["benchmarks"]:
        stats, extra = bench["stats"], bench["extra_info"]
        rows.append(
            {"group": bench["group"], "median_ms": stats["median"] * 1e3,
             "iqr_ms": stats["iqr"] * 1e3, **extra}
        )  # fmt: skip
    return rows


def print_table(parts: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    for part in parts:
        verdict = "ok" if part["status"] == "0" else f"FAILED ({part['status']})"
        closing = part["closing"][0][:60] if part["closing"] else ""
        print(f"{part['name']:10} {verdict:14} {part['seconds']:6.1f} s  {closing}")
    eager = {r["group"]: r["median_ms"] for r in rows if r["variant"] == "eager"}
    print(f"{'':48} {'ms':>9} {'spread':>8} {'x eager':>8} {'x limit':>8}")
    for row in rows:
        label = f"{row['group']} {row['variant']}"
        limit = row["limit_seconds"] * 1e3
        ratio = eager.get(row["group"], float("nan")) / row["median_ms"]
        print(
            f"{label:48} {row['median_ms']:9.3f} {row['iqr_ms']:8.3f} {ratio:8.1f} "
            f"{row['median_ms'] / limit:8.1f}"
        )


def main() -> int:
    work, out = Path(sys.argv[1]), Path(sys.argv[2])
    parts, rows, info = read_parts(work), bench_rows(work), machine()
    gpu = re.sub(r"[^a-z0-9]+", "-", (info["gpu"] or "no-gpu").lower()).strip("-")
    target = out / f"{gpu}-{datetime.date.today()}.json"
    result = {"machine": info, "parts": parts, "benchmarks": rows}
    target.write_text(json.dumps(result, indent=1) + "\n")
    print_table(parts, rows)
    print(f"wrote {target}")
    return 0 if all(part["status"] == "0" for part in parts) else 1


if __name__ == "__main__":
    sys.exit(main())
