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
_SPEEDS = {
    ("dd2", "curve"): "averages along the training",
    ("dd2", "lengths"): "short stages 2",
    ("dd1_start", "lengths"): "the same from DD1's regression",
}
_DISTANCES = {
    "fd_teacher": "to the teacher",
    "fd": "to held-out digits",
    "fd_teacher_codes": "to the teacher, nearest codes",
    "fd_codes": "to held-out digits, nearest codes",
}


def _read(folder: Path, claim: str) -> list[Report]:
    """Of every seed, in order."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{claim}*-*.json"))]
    return sorted((r for r in reports if "seed" in r), key=lambda r: r["seed"])


def reached(points: list[Report], name: str, wanted: float) -> float | None:
    """CPU seconds of the first point whose distance is at most ``wanted``."""
    return next((float(p["seconds"]) for p in points if p[name] <= wanted), None)


def speed(folder: Path) -> str:
    rows = []
    ends_of = {r["seed"]: r["dd1"] for r in _read(folder, "speed")}
    for (method, kind), text in _SPEEDS.items():
        found = _read(folder, "speed" if kind == "curve" else "lengths")
        reports = [r | {"dd1": ends_of[r["seed"]]} for r in found if kind in r.get(method, {})]
        for name, distance in _DISTANCES.items() if reports else ():
            seconds, total, alone, ends, near = [], [], [], [], []
            for report in reports:
                dd1, dd2 = report["dd1"], report[method]
                end = dd1["curve"][-1]
                ends.append(end)
                near.append(reached(dd1["curve"], name, 1.1 * end[name]) or end["seconds"])
                time = reached(dd2[kind], name, end[name])
                if time is not None:
                    seconds.append(time)
                    total.append(end["seconds"] / time)
                    alone.append((end["seconds"] - dd1["before"]) / (time - dd2["before"]))
            rows.append(
                [
                    text,
                    distance,
                    spread([end[name] for end in ends], 3),
                    spread([end["seconds"] for end in ends], 0),
                    spread(near, 0),
                    f"{len(seconds)} of {len(reports)}",
                    *(spread(v, d) if v else "" for v, d in ((seconds, 0), (total, 1), (alone, 1))),
                ]
            )
    header = ["DD2", "distance", "DD1 ends with", "in CPU seconds", "within 10% after",
              "DD2 reaches it", "in CPU seconds", "times as fast", "stage 2 alone"]  # fmt: skip
    return table(header, rows) if rows else ""


def steadiness(folder: Path) -> str:
    reports = _read(folder, "steadiness")
    if not reports:
        return ""
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
    if not reports:
        return ""
    shown = (0, 2, 4)  # of the times
    rows = []
    for at, text in {0: "equal updates", -1: "equal time"}.items():
        for key in sorted((k for k in reports[0] if k.startswith("K=")), key=lambda k: int(k[2:])):
            points = [r[key][at] for r in reports]
            error, excess, signal = (
                [statistics.mean(p[name]) for p in points] for name in ("error", "excess", "signal")
            )
            shares = [e / s for e, s in zip(error, signal, strict=True)]
            distances = [(k, name) for k in ("raw", "average") for name in ("fd_teacher", "fd")]
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
    header = ["", "K", "updates", "CPU seconds, counted", "error", "excess loss",
              *(f"error at t = {t:g}" for t in times), "error over signal",
              "FD to the teacher, raw weights", "FD, raw", "to the teacher, average",
              "FD, average"]  # fmt: skip
    return table(header, rows)


_COLUMNS = [(e, kind) for e in ("0.0001", "0.01", "0.1") for kind in ("features", "pixels")]


def smoothness(folder: Path) -> str:
    """Of every seed's generators, and of those of the bundled teacher."""
    seeds = _read(folder, "smoothness")
    path = folder / "smoothness-students.json"
    bundled = [json.loads(path.read_text())] if path.is_file() else []
    students = sorted(k for k in bundled[0] if k.startswith("digits")) if bundled else []

    def row(text: str, reports: list[Report], name: str, under: str = "") -> list[str]:
        def cell(epsilon: str, kind: str) -> str:
            values = [r[name][epsilon][kind]["mean"] for r in reports if epsilon in r[name]]
            if under:
                below = [r[under][epsilon][kind]["mean"] for r in reports if epsilon in r[under]]
                values = [a / b for a, b in zip(values, below, strict=True)]
            return spread(values, 2 if under else 0) if values else ""

        return [text, str(len(reports)), *(cell(*column) for column in _COLUMNS)]

    rows = []
    if seeds:
        rows += [
            row("DD1", seeds, "dd1"),
            row("DD2 as in the paper", seeds, "dd2"),
            row("DD2's over DD1's", seeds, "dd2", "dd1"),
            row("DD1, nearest codes", seeds, "dd1_codes"),
            row("DD2, nearest codes", seeds, "dd2_codes"),
            row("DD2's over DD1's, nearest codes", seeds, "dd2_codes", "dd1_codes"),
            row("the teacher's flow", seeds, "flow"),
        ]
    if bundled:
        rows += [
            row("DD2, bundled", bundled, "dd2"),
            row("DD2, bundled, nearest codes", bundled, "dd2_codes"),
            row("the bundled teacher's flow", bundled, "flow"),
            *(row(f"logit student {name}", bundled, name) for name in students),
        ]
    header = ["", "seeds", *(f"{kind}, {epsilon}" for epsilon, kind in _COLUMNS)]
    return table(header, rows) if rows else ""


CLAIMS: dict[str, Callable[[Path], str]] = {
    "Speed of training": speed,
    "Steadiness by performance alignment": steadiness,
    "Updates of the guidance network": updates,
    "Smoothness of the noise space": smoothness,
}
