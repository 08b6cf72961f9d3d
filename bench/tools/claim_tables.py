"""The tables of what ``claims.py`` wrote, for ``quality.py``; a cell has the mean and range of the
seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cells import spread, table

Report = dict[str, Any]
_METHODS = {"dd2": "as in the paper", "dd1_start": "from DD1's regression"}
_DISTANCES = {
    "fd_teacher": "to the teacher",
    "fd": "to held-out digits",
    "fd_teacher_codes": "to the teacher, nearest codes",
    "fd_codes": "to held-out digits, nearest codes",
}


def _read(folder: Path, claim: str) -> list[Report]:
    """Of every seed, in order."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{claim}-*.json"))]
    return sorted((r for r in reports if "seed" in r), key=lambda r: r["seed"])


def reached(curve: list[Report], name: str, wanted: float) -> float | None:
    """CPU seconds at the first checkpoint whose distance is at most ``wanted``."""
    return next((float(p["seconds"]) for p in curve if p[name] <= wanted), None)


def speed(folder: Path) -> str:
    rows = []
    for method, text in _METHODS.items():
        reports = [r for r in _read(folder, "speed") if method in r]
        for name, distance in _DISTANCES.items() if reports else ():
            ends = [r["dd1"]["curve"][-1] for r in reports]
            times = [
                reached(r[method]["curve"], name, end[name])
                for r, end in zip(reports, ends, strict=True)
            ]
            found = [i for i, seconds in enumerate(times) if seconds is not None]
            cells = [""] * 3
            if found:
                seconds = [float(times[i] or 0) for i in found]
                total = [ends[i]["seconds"] / s for i, s in zip(found, seconds, strict=True)]
                alone = [
                    (ends[i]["seconds"] - reports[i]["dd1"]["before"])
                    / (s - reports[i][method]["before"])
                    for i, s in zip(found, seconds, strict=True)
                ]
                cells = [spread(seconds, 0), spread(total, 1), spread(alone, 1)]
            near = [
                reached(r["dd1"]["curve"], name, 1.1 * end[name]) or end["seconds"]
                for r, end in zip(reports, ends, strict=True)
            ]
            rows.append(
                [
                    text,
                    distance,
                    spread([end[name] for end in ends], 3),
                    spread([end["seconds"] for end in ends], 0),
                    spread(near, 0),
                    f"{len(found)} of {len(reports)}",
                    *cells,
                ]
            )
    header = ["DD2", "distance", "DD1 ends with", "in CPU seconds", "within 10% after",
              "DD2 reaches it", "in CPU seconds", "times as fast", "stage 2 alone"]  # fmt: skip
    return table(header, rows)


def steadiness(folder: Path) -> str:
    reports = _read(folder, "steadiness")
    rows = []
    for kind, text in {"raw": "raw weights", "average": "average (EMA)"}.items():
        for name in ("fd_teacher", "fd"):
            values = [[r[way][kind][name] for way in ("continued", "aligned")] for r in reports]
            cells = [spread([statistics.mean(v[i]) for v in values], 3) for i in (0, 1)]
            for measure in (statistics.stdev, lambda v: max(v) - min(v)):
                pairs = [[measure(v) for v in both] for both in values]
                cells += [spread([pair[i] for pair in pairs], 3) for i in (0, 1)]
                cells.append(spread([100 * (1 - b / a) for a, b in pairs], 0))
            rows.append([text, _DISTANCES[name], str(len(reports)), *cells])
    seconds = [
        f"{way} {spread([r[way]['seconds'] for r in reports], 0)}"
        for way in ("continued", "aligned")
    ]
    header = ["", "distance", "seeds", "mean, without", "with alignment", "deviation, without",
              "with", "lower by %", "range, without", "with", "lower by %"]  # fmt: skip
    return f"{table(header, rows)}\n\nCPU seconds after the common half: {', '.join(seconds)}."


def updates(folder: Path) -> str:
    reports = _read(folder, "updates")
    shown = (0, 2, 4)  # of the times
    rows = []
    for at, text in {0: "equal updates", -1: "equal time"}.items():
        for key in sorted((k for k in reports[0] if k.startswith("K=")), key=lambda k: int(k[2:])):
            points = [r[key][at] for r in reports]
            error, excess, signal = (
                [statistics.mean(p[name]) for p in points] for name in ("error", "excess", "signal")
            )
            shares = [e / s for e, s in zip(error, signal, strict=True)]
            distances = [("average", "fd_teacher"), ("average", "fd"), ("raw", "fd_teacher")]
            rows.append(
                [
                    text,
                    key[2:],
                    str(points[0]["updates"]),
                    spread([p["seconds"] for p in points], 0),
                    *(spread(values, 3) for values in (error, excess)),
                    *(spread([p["error"][i] for p in points], 3) for i in shown),
                    spread(shares, 2),
                    *(spread([p[k][name] for p in points], 2) for k, name in distances),
                ]
            )
    times = [reports[0]["times"][i] for i in shown]
    header = ["", "K", "updates", "CPU seconds", "error", "excess loss",
              *(f"error at t = {t:g}" for t in times), "error over signal", "FD to the teacher",
              "FD", "to the teacher, raw weights"]  # fmt: skip
    return table(header, rows)


_WALKED = {
    "dd1": "DD1",
    "dd2": "DD2 as in the paper",
    "dd1_start": "DD2 from DD1's regression",
    "flow": "DD1's map",
}


def smoothness(folder: Path) -> str:
    """Of every seed's generators, and of those of the bundled teacher."""
    columns = [(e, kind) for e in ("0.0001", "0.01", "0.1") for kind in ("features", "pixels")]

    def row(text: str, codes: bool, reports: list[Report], name: str) -> list[str]:
        key = name if not codes or name not in _WALKED or name == "flow" else f"{name}_codes"
        found = [r[key] for r in reports if key in r]
        cells = [
            spread([f[e][kind]["mean"] for f in found], 0) if e in found[0] else ""
            for e, kind in columns
        ]
        return [text, "nearest codes" if codes else "vectors", str(len(found)), *cells]

    def ratio(text: str, codes: str, reports: list[Report], name: str) -> list[str]:
        pairs = [
            (r[f"{name}{codes}"], r[f"dd1{codes}"])
            for r in reports
            if f"{name}{codes}" in r and f"dd1{codes}" in r
        ]
        cells = [
            spread([a[e][kind]["mean"] / b[e][kind]["mean"] for a, b in pairs], 2)
            if e in pairs[0][0]
            else ""
            for e, kind in columns
        ]
        return [text, "nearest codes" if codes else "vectors", str(len(pairs)), *cells]

    reports, rows = _read(folder, "smoothness"), []
    for codes in (False, True):
        names = [n for n in _WALKED if codes or n != "flow"]
        rows += [row(_WALKED[n], codes, reports, n) for n in names if any(n in r for r in reports)]
        rows += [
            ratio(f"{_WALKED[n]} over DD1", "_codes" if codes else "", reports, n)
            for n in _METHODS
            if any(n in r for r in reports)
        ]
    path = folder / "smoothness-students.json"
    if path.is_file():
        bundled = json.loads(path.read_text())
        rows.append(row("DD2, bundled", False, [bundled], "dd2"))
        rows.append(row("DD2, bundled", True, [bundled], "dd2"))
        rows.append(row("DD1's map, bundled teacher", True, [bundled], "flow"))
        known = [k for k, v in bundled.items() if isinstance(v, dict) and k.startswith("digits")]
        rows += [row(f"logit student {k}", True, [bundled], k) for k in known]
    header = ["", "decoded", "seeds",
              *(f"{kind}, {e}" for e, kind in columns)]  # fmt: skip
    return table(header, rows)


CLAIMS: dict[str, Callable[[Path], str]] = {
    "Speed of training": speed,
    "Steadiness by performance alignment": steadiness,
    "Updates of the guidance network": updates,
    "Smoothness of the noise space": smoothness,
}
