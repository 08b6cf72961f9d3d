"""Prints the sections of bench/QUALITY.md.

    python bench/tools/quality.py [RUN...] [--ablations DIR] [--claims DIR] [--passes DIR]
        [--tuning DIR] [--refinements DIR]

Of runs of ``dd2-fast train digits`` and ``train toy`` their tables; of what ``ablations.py`` wrote
the comparison of methods, of ``claims.py`` a table a claim; of what ``passes.py`` wrote generators
with Jacobi passes after them; of the ``trials.json`` of ``dd2-fast tune``, as ``NAME.json``, the
best trials, and of further ones of a single trial, as ``NAME-TEXT.json``, their distances; of what
``refinements.py`` wrote a table of one seed and one of those of several.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablations import VARIANTS
from cells import spread, table
from claim_tables import CLAIMS
from refinements import VARIANTS as REFINEMENTS

ROWS = {
    "reconstruction": "real digits, tokenized",
    "teacher": "teacher, 16 steps",
    "one_step": "**one step**",
    "set_prediction": "set prediction",
    "stage1": "stage 1 in one step",
}
COLUMNS = {
    "accuracy": ("accuracy", 3),
    "fd": ("FD", 2),
    "fd_class": ("FD per class", 2),
    "fd_pixel": ("FD pixel", 3),
    "nll": ("NLL", 3),
}


def digits(runs: list[dict[str, Any]]) -> str:
    rows, ratios = [], []
    for run in runs:
        metrics, seed = run["metrics"], str(run["settings"]["seed"])
        for key, name in ROWS.items():
            values = [f"{metrics[key][c]:.{digits}f}" for c, (_, digits) in COLUMNS.items()]
            rows.append([seed, name, *values])
        one, teacher, independent = (metrics[k] for k in ("one_step", "teacher", "set_prediction"))
        gap = (one["nll"] - teacher["nll"]) / (independent["nll"] - teacher["nll"])
        ratios.append(
            [
                seed,
                f"{one['fd'] / teacher['fd']:.2f}",
                f"{one['fd'] / independent['fd']:.2f}",
                f"{gap:.2f}",
                f"{one['accuracy'] - teacher['accuracy']:+.3f}",
                f"{sum(run['seconds'].values()):.0f}",
                run["provenance"]["commit"][:7],
            ]
        )
    header = ["seed", "", *(name for name, _ in COLUMNS.values())]
    ratio_header = ["seed", "FD over the teacher's", "FD over set prediction's",
                    "NLL gap over set prediction's", "accuracy against the teacher's",
                    "training seconds", "commit"]  # fmt: skip
    wanted = ["wanted", "<= 2", "<= 0.5", "<= 0.5", "within 0.02", "<= 900", ""]
    return f"{table(header, rows)}\n\n{table(ratio_header, [*ratios, wanted])}"


def toys(runs: list[dict[str, Any]]) -> str:
    rows = []
    for run in runs:
        settings, metrics = run["settings"], run["metrics"]
        tokens = 2 if settings["kind"] == "pair" else settings["num_tokens"]
        name = "{(0,0),(1,1)}" if tokens == 2 else f"random, {tokens} tokens x 4 codes"
        values = [f"{metrics[k]:.3f}" for k in ("one_step", "stage1", "set_prediction")]
        rows.append([name, *values, f"{sum(run['seconds'].values()):.0f}"])
    return table(["teacher", "one step", "stage 1", "set prediction", "seconds"], rows)


def ablations(folder: Path) -> str:
    """Mean and range over the seeds for every variant, and the gaps to the teacher over DD1's."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for report in sorted(reports, key=lambda r: r["seed"]):
        by_variant.setdefault(report["variant"], []).append(report)
    dd1 = {r["seed"]: r for r in by_variant["dd1"]}
    rows = [_compared("teacher, 16 steps", by_variant["dd1"], "teacher", None)]
    rows.append(_compared("set prediction", by_variant["dd1"], "set_prediction", None))
    order = [name for name in VARIANTS if name in by_variant]
    rows += [_compared(by_variant[n][0]["text"], by_variant[n], "one_step", dd1) for n in order]
    for reports in (by_variant[n] for n in order if VARIANTS[n].snap):
        text = f"{reports[0]['text']}, nearest codes decoded"
        rows.append(_compared(text, reports, "snapped", dd1))
    header = ["", "seeds", "FD", "gap over DD1's", "FD to the teacher", "gap over DD1's",
              "FD per class", "FD pixel", "NLL", "CPU seconds"]  # fmt: skip
    return table(header, rows)


def _compared(
    text: str, reports: list[dict[str, Any]], row: str, dd1: dict[int, dict[str, Any]] | None
) -> list[str]:
    found = [r["metrics"][row] for r in reports]

    def cell(key: str, digits: int) -> str:
        values = [m[key] for m in found if key in m]
        return spread(values, digits) if values else ""

    def share(gap: Callable[[dict[str, Any], str], float]) -> str:
        if dd1 is None:
            return ""
        metrics = [(r["metrics"], dd1[r["seed"]]["metrics"]) for r in reports]
        ratios = [gap(own, row) / gap(theirs, "one_step") for own, theirs in metrics]
        return spread(ratios, 2)

    seconds = [f"{r['cpu_seconds']:.0f}" for r in reports] if dd1 is not None else []
    return [
        text,
        str(len(reports)),
        cell("fd", 2),
        share(lambda m, r: m[r]["fd"] - m["teacher"]["fd"]),
        cell("fd_teacher", 2),
        share(lambda m, r: m[r]["fd_teacher"] - m[r]["fd_teacher_floor"]),
        cell("fd_class", 2),
        cell("fd_pixel", 3),
        cell("nll", 2),
        ", ".join(seconds),
    ]


PASSES = {
    "accuracy": ("accuracy", 3),
    "fd": ("FD", 2),
    "fd_class": ("FD per class", 2),
    "fd_pixel": ("FD pixel", 3),
    "to_teacher": ("FD to the teacher", 3),
    "to_teacher_class": ("per class to the teacher", 2),
    "to_teacher_pixel": ("pixel to the teacher", 3),
    "recall": ("recall", 3),
    "nll": ("NLL", 2),
    "ms": ("ms", 2),
}


def passes(folder: Path) -> str:
    """A table for each bundled teacher."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text())
        rows = []
        for key, found in report["rows"].items():
            name, _, count = key.partition("+")
            if count:
                method = report["runs"].get(name.partition(",")[0], {}).get("method", "logits")
                kind = {"dd1": "DD1", "dd2": "DD2", "logits": "logit student"}[method]
                text = "DD2, bundled" if name == "dd2" else f"{kind} {name}"
                told = [text, str(int(count) + 1)]
            elif key in ("teacher", "set_prediction"):
                told = [key.replace("_", " "), ""]
            else:
                continue
            cells = [f"{found[c]:.{d}f}" if c in found else "" for c, (_, d) in PASSES.items()]
            rows.append([*told, *cells])
        header = ["", "passes", *(name for name, _ in PASSES.values())]
        parts.append(f"### {report['name']}\n\n{table(header, rows)}")
    return "\n\n".join(parts)


REFINED = {name: column for name, column in PASSES.items() if name != "ms"} | {"fd": ("FD", 3)}


def refinements(folder: Path) -> str:
    """Every variant at the first seed, then those of several; rows are means of evaluations."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text())
        found.setdefault(path.stem.rpartition("-")[0], {})[report["seed"]] = report
    reports = [of for name in ("start", *REFINEMENTS) if (of := found.get(name))]
    first = min(seed for of in reports for seed in of)

    def means(rows: list[dict[str, float]]) -> dict[str, float]:
        return {c: sum(r[c] for r in rows) / len(rows) for c in REFINED if c in rows[0]}

    def by_key(report: dict[str, Any]) -> dict[str, dict[str, float]]:
        every = list(report["rows"].values())
        return {key: means([of[key] for of in every if key in of]) for key in every[0]}

    def line(told: list[str], rows: list[dict[str, float]]) -> list[str]:
        columns = ((c, d) for c, (_, d) in REFINED.items())
        return told + [spread([r[c] for r in rows], d) if c in rows[0] else "" for c, d in columns]

    def text(key: str) -> tuple[str, str]:
        name, _, passes = key.rpartition("+")
        if name == "start, dd2":
            return "DD2: as it was", passes
        variant, comma, rest = name.partition(",")
        if variant == "start":
            return f"student: as it was{comma}{rest}", passes
        network = {"student": "student", "dd2": "DD2"}[REFINEMENTS[variant].network]
        return f"{network}: {REFINEMENTS[variant].text}{comma}{rest}", passes

    one = [of[first] for of in reports if first in of]
    rows = [line(["teacher", "16 steps", "", ""], [means(list(one[0]["teacher"].values()))])]
    apart = []
    for report in one:
        rest = [str(report["steps"]), f"{report['cpu_seconds']:.0f}"]
        rows += [line([*text(key), *rest], [row]) for key, row in by_key(report).items()]
        a, b = (report["rows"][seed] for seed in sorted(report["rows"])[:2])
        apart += [{c: abs(a[k][c] - b[k][c]) for c in REFINED if c in a[k]} for k in b if k in a]
    rows.append(line(["two evaluations differ by", "1", "", ""], [means(apart)]))
    columns = [name for name, _ in REFINED.values()]
    parts = [table(["", "passes", "steps", "CPU seconds", *columns], rows)]
    several = []
    for of in (of for of in reports if len(of) > 1):
        every = [by_key(report) for report in of.values()]
        for key in every[0]:
            if key.startswith("start, dd2"):
                continue  # one network
            several.append(line([*text(key), str(len(every))], [rows[key] for rows in every]))
    if several:
        parts.append(table(["", "passes", "seeds", *columns], several))
    return "\n\n".join(parts)


_DISTANCES = {"fd": ("FD", 3), "fd_class": ("per class", 2), "fd_pixel": ("pixel", 4)}
_SHOWN = 4  # trials


def tuning(folder: Path) -> str:
    """A table for each study, and one of what mattered."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        if "-" in path.stem:
            continue
        study = json.loads(path.read_text())
        names = list(study["search"])
        header = ["", *(name for name, _ in _DISTANCES.values()), *names, "CPU seconds"]
        complete = [trial for trial in study["trials"] if trial["value"] is not None]
        best = sorted(complete, key=lambda trial: trial["value"])[:_SHOWN]
        own = [trial for trial in complete if trial["own"]]
        rows = [_distances("teacher, another draw", study["teacher"], [""] * (len(names) + 1))]
        rows += [_trial("own values", trial, names) for trial in own]
        rows += [_trial(f"trial {t['number']}", t, names) for t in best if not t["own"]]
        for other in sorted(folder.glob(f"{path.stem}-*.json")):
            (again,) = json.loads(other.read_text())["trials"]
            rows.append(
                _trial(
                    other.stem.partition("-")[2].replace("-", ", ").replace("_", " "), again, names
                )
            )
        spent = sum(trial["cpu_seconds"] or 0 for trial in study["trials"])
        counted = (
            f"{len(study['trials'])} trials, {len(complete)} of them complete, {spent:.0f} CPU s."
        )
        shares = [[n, *(f"{one.get(n, 0):.2f}" for one in study["importances"].values())]
                  for n in names]  # fmt: skip
        parts.append(f"### {path.stem}, tuned\n\n{counted}\n\n{table(header, rows)}")
        parts.append(table(["share of the variance", *study["importances"]], shares))
    return "\n\n".join(parts)


def _trial(text: str, trial: dict[str, Any], names: list[str]) -> list[str]:
    settings = [trial["settings"].get(name, "") for name in names]
    cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in settings]
    return _distances(text, trial["distances"], [*cells, f"{trial['cpu_seconds']:.0f}"])


def _distances(text: str, found: dict[str, float], rest: list[str]) -> list[str]:
    return [text, *(f"{found[c]:.{d}f}" for c, (_, d) in _DISTANCES.items()), *rest]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="folders of finished runs")
    parser.add_argument("--ablations", type=Path, help="folder that bench/tools/ablations.py wrote")
    parser.add_argument("--claims", type=Path, help="folder that bench/tools/claims.py wrote")
    parser.add_argument("--passes", type=Path, help="folder that bench/tools/passes.py wrote")
    parser.add_argument("--tuning", type=Path, help="folder of trials.json of dd2-fast tune")
    parser.add_argument("--refinements", type=Path, help="folder that refinements.py wrote")
    options = parser.parse_args()
    runs = [json.loads((folder / "run.json").read_text()) for folder in options.runs]
    found = {name: [run for run in runs if run["recipe"] == name] for name in ("digits", "toy")}
    parts = []
    if found["digits"]:
        parts.append(f"## Digits\n\n{digits(found['digits'])}")
    if options.ablations:
        parts.append(f"## Methods at equal training time\n\n{ablations(options.ablations)}")
    if options.claims:
        made = {title: table_of(options.claims) for title, table_of in CLAIMS.items()}
        parts += [f"### {title}\n\n{text}" for title, text in made.items() if text]
    if options.passes:
        parts.append(f"## Jacobi passes\n\n{passes(options.passes)}")
    if options.refinements:
        parts.append(f"## Refinements\n\n{refinements(options.refinements)}")
    if options.tuning:
        parts.append(f"## Tuning\n\n{tuning(options.tuning)}")
    if found["toy"]:
        parts.append(f"## Toys\n\n{toys(found['toy'])}")
    print("\n\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
