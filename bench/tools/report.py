"""Makes RESULTS.md and its plots from the result files: ``python bench/tools/report.py``.

``--check`` writes nothing and exits 1 where RESULTS.md is not what the files make.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
import counted
from plots import PLOTS, draw
from records import BUSY, Record, Row, groups, load, times_faster

BENCH = Path(__file__).resolve().parents[1]

# Every benchmark there is, in the order of the page: what its groups start with.
BENCHES = {
    "conditional_score": "`conditional_score`",
    "csd_loss": "`csd_loss`, forward and backward",
    "sample_code": "`sample_code`",
    "logit_distillation_loss": "`logit_distillation_loss`, forward and backward",
    "nearest_code": "`nearest_code`",
    "flow_solve": "`flow_solve`",
    "image_normal": "`image_normal`, the noise of images",
    "linear_conditional_score": "`linear_conditional_score`",
    "attention": "VAR's attention over scales",
    "sampling": "one-step sampling",
    "training": "training steps",
    "scaling": "scaling",
}
HEAD = """# Results

Made by `python bench/tools/report.py` from the files in [results](results); a test holds it to
them. They come from `pytest bench --benchmark-only --benchmark-json FILE` and, on a GPU, from
`bench/gpu_check.sh`.
"""
LEGEND = """Times are medians, the spread is the IQR over the median. Every result was checked
before it was timed. "x eager" is how many times as long the plain code takes: the fastest plain
torch code we know; in training the reference trainer, in sampling the teacher. "x compile" is the
same under torch.compile. "% limit" is the time that the counted bytes take at the copy bandwidth
measured in that run, or the counted FLOPs at the highest rate seen in it, of a large matrix product
or of a benchmark in the same precision, whichever is longer, over the time taken; files before
2026-11-21 counted bytes alone, and before 2026-11-30 none measured bfloat16's rate on a CPU. "MB"
is the memory that a call adds at its peak, dB the PSNR of images to float32's. Empty: not measured.
"""


def table(header: list[str], rows: list[list[str]], left: int = 2) -> str:
    """In Markdown; the first ``left`` columns are words, the others numbers."""
    aligned = ["---" if i < left else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, aligned, *rows])


def page(records: list[Record]) -> str:
    """The whole text."""
    parts = [HEAD, "## What was measured where\n", _files(records), _coverage(records), LEGEND]
    for device, own in by_device(records).items():
        parts.append(f"## {device}\n")
        parts.append(_machine(next((r for r in own if r.others <= BUSY), own[0])))
        parts += [_parts(record) for record in own if record.parts]
        parts += _tables(own)
        parts += _links(device, own)
    parts += [counted.section()] if counted.FILE.is_file() else []
    return "\n".join(parts).rstrip() + "\n"


def by_device(records: list[Record]) -> dict[str, list[Record]]:
    """The files of each machine, the newest first; GPUs before CPUs."""
    ordered = sorted(records, key=lambda r: (r.date or "", r.name), reverse=True)
    ordered.sort(key=lambda record: not record.machine.get("gpu"))
    found: dict[str, list[Record]] = {}
    for record in ordered:
        found.setdefault(record.device, []).append(record)
    return found


def rows_of(records: list[Record], bench: str, device: str = "") -> tuple[str, list[Row]]:
    """The rows of a benchmark (on "cpu" or "cuda"), each group's of the first of the files that has
    it, and the names of these files."""
    found: dict[str, tuple[str, list[Row]]] = {}
    for record in records:
        own: dict[str, list[Row]] = {}
        for row in record.rows:
            if row.words[0] == bench and device in ("", row.words[1]):
                own.setdefault(row.group, []).append(row)
        found = {**{group: (record.name, rows) for group, rows in own.items()}, **found}
    names = dict.fromkeys(name for name, _ in found.values())
    return ", ".join(names), [row for _, rows in found.values() for row in rows]


def _files(records: list[Record]) -> str:
    rows = [
        [f"[{r.name}](results/{r.name})", device, r.date or "", (r.commit or "")[:7] or "unknown",
         str(r.machine.get("torch", "")), str(len(groups(r.rows)))]
        for device, own in by_device(records).items()
        for r in own
    ]  # fmt: skip
    return table(["file", "machine", "date", "commit", "torch", "groups"], rows, 6) + "\n"


def _coverage(records: list[Record]) -> str:
    """Which benchmark ran on which kind of device."""
    newest_first = [record for own in by_device(records).values() for record in own]
    rows = [
        [title, *(_sizes(rows_of(newest_first, bench, device)[1]) for device in ("cpu", "cuda"))]
        for bench, title in BENCHES.items()
    ]
    text = table(["sizes measured", "on a CPU", "on a GPU"], rows, left=3) + "\n"
    if not any(row.words[1] == "cuda" for record in records for row in record.rows):
        text += "\n**No GPU figure exists yet**: nothing here says how fast a GPU is.\n"
    return text


def _sizes(rows: list[Row]) -> str:
    names = dict.fromkeys(row.words[2].split(" ")[0] for row in rows)
    return ", ".join(name for name in names if name) or "not measured"


def _machine(record: Record) -> str:
    info, facts = record.machine, []
    for name in ("nvidia_smi", "extension"):
        known = info.get(name)
        if isinstance(known, dict):
            facts += [f"{key} {value}" for key, value in known.items()]
    facts += [f"torch {info['torch']}"] if info.get("torch") else []
    facts += [f"Python {info['python_version']}"] if info.get("python_version") else []
    limits = next((row.extra for row in record.rows if "matrix_rate" in row.extra), None)
    if limits:
        facts.append(f"copy {limits['copy_bandwidth'] / 1e9:.0f} GB/s")
        facts.append(f"highest rate {limits['matrix_rate'] / 1e12:.3g} TFLOP/s")
    facts += load_facts(info)
    return "; ".join(facts) + "\n"


def load_facts(info: dict[str, Any]) -> list[str]:
    """What else the machine did, where the file says it."""
    load = info.get("load")
    return [f"other processes {load['others']:.0%} of the processors"] if load else []


def _parts(record: Record) -> str:
    """How the parts of ``gpu_check.sh`` ended."""
    rows = []
    for part in record.parts:
        ended = "passed" if part["status"] == "0" else f"failed ({part['status']})"
        closing = part["closing"][0].strip("= ") if part.get("closing") else ""
        rows.append([part["name"], ended, f"{part['seconds']:.0f} s", closing.replace("|", "/")])
    return table(["gpu_check.sh", "", "", "last line"], rows, 4) + "\n"


def _tables(records: list[Record]) -> list[str]:
    parts = []
    header = ["", "variant", "ms", "spread", "x eager", "x compile", "% limit", "MB"]
    for bench, title in BENCHES.items():
        name, rows = rows_of(records, bench)
        if not rows:
            continue
        lines = [
            _line(row, variants, bool(records[0].machine.get("gpu")))
            for variants in groups(rows).values()
            for row in variants.values()
        ]
        parts.append(f"### {title[0].upper()}{title[1:]}\n\nFrom {name}.\n")
        parts += [_busy(r) for r in records if r.name in name.split(", ") and r.others > BUSY]
        parts.append(table(header, lines) + "\n")
    return parts


def _busy(record: Record) -> str:
    """What to know of a file that was not measured on an idle machine."""
    others = f"other processes had {record.others:.0%} of the processors"
    return f"In {record.name} {others}: times are longer than on an idle machine.\n"


def _line(row: Row, variants: dict[str, Row], gpu: bool) -> list[str]:
    """Beside a GPU's rows, those of the machine's CPU say so."""
    _, device, size = row.words
    size = size or row.group
    ratios = times_faster(variants, row.median, lambda base: base.median)
    limit, peak = row.extra.get("limit_seconds"), row.extra.get("peak_bytes")
    first = row is next(iter(variants.values()))
    return [
        (f"{size} on the CPU" if gpu and device == "cpu" else size) if first else "",
        row.variant + (f", {row.extra['psnr']:.1f} dB" if "psnr" in row.extra else ""),
        f"{row.median * 1e3:.3g}" if row.median < 1 else f"{row.median * 1e3:.0f}",
        f"{row.spread:.0%}",
        *(f"{ratio:.1f}" if ratio else "" for ratio in ratios),
        f"{100 * limit / row.median:.1f}" if limit else "",
        f"{peak / 1e6:.1f}" if peak is not None else "",
    ]


def _links(device: str, records: list[Record]) -> list[str]:
    rows = plotted(records)
    return [
        f"![{plot.title} on {device}](results/{picture(records, name)})\n"
        for name, plot in PLOTS.items()
        if plot.select(rows)
    ]


def plotted(records: list[Record]) -> list[Row]:
    """The newest rows of each benchmark for a machine's plots: its GPU's, where it has one."""
    device = "cuda" if records[0].machine.get("gpu") else "cpu"
    return [row for bench in BENCHES for row in rows_of(records, bench, device)[1]]


def picture(records: list[Record], plot: str) -> str:
    return f"{Path(records[0].name).stem}-{plot}.png"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=BENCH / "results", help="folder of files")
    parser.add_argument("--out", type=Path, default=BENCH / "RESULTS.md")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    options = parser.parse_args(arguments)
    records = [load(path) for path in sorted(options.results.glob("*.json"))]
    text = page(records)
    if options.check:
        same = options.out.is_file() and options.out.read_text() == text
        if not same:
            print(f"{options.out} is not what the files make; run python bench/tools/report.py")
        return int(not same)
    options.out.write_text(text)
    for own in by_device(records).values():
        rows: list[Any] = plotted(own)
        for name, plot in PLOTS.items():
            if plot.select(rows):
                draw(plot, rows, options.results / picture(own, name))
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
