"""What moved between results beyond its noise: ``compare.py BEFORE AFTER.json``.

A time moved when its change is larger than both files' IQRs over their medians together. Files are
those of ``pytest bench --benchmark-json`` or of ``gpu_check.sh``, in any mixture. BEFORE is one or
a folder, ``bench/results``: of each group the newest file of AFTER's machine that has it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from records import BASELINES, Record, Row, groups, load


@dataclass(frozen=True)
class Change:
    """Of one variant; ``percent`` is positive where it became slower."""

    before: Row
    after: Row

    @property
    def percent(self) -> float:
        return 100 * (self.after.median / self.before.median - 1)

    @property
    def noise(self) -> float:
        return 100 * (self.before.spread + self.after.spread)

    @property
    def moved(self) -> bool:
        return abs(self.percent) > self.noise


def changes(before: Record, after: Record) -> list[Change]:
    """Of all variants that both files have, the largest change first."""
    old = {row.key: row for row in before.rows}
    both = [Change(old[row.key], row) for row in after.rows if row.key in old]
    return sorted(both, key=lambda change: -abs(change.percent))


def only(a: Record, b: Record) -> list[str]:
    """What ``a`` has and ``b`` has not."""
    other = {row.key for row in b.rows}
    return [row.key for row in a.rows if row.key not in other]


def newest(folder: Path, after: Record) -> Record:
    """Of each group in the folder's files of the same machine the rows of the newest.

    Raises:
        ValueError: no file of that machine.
    """
    records = [load(path) for path in sorted(folder.glob("*.json"))]
    own = [r for r in records if r.device == after.device and r.name != after.name]
    if not own:
        raise ValueError(f"{folder}: expected results of {after.device}, got none")
    own.sort(key=lambda record: (record.date or "", record.name))
    rows: dict[str, list[Row]] = {}
    for record in own:  # what a newer one has takes the place of the older's
        rows.update({g: list(variants.values()) for g, variants in groups(record.rows).items()})
    found = [row for variants in rows.values() for row in variants]
    return Record(str(folder), own[-1].machine, found)


def drift(found: list[Change]) -> str | None:
    """Plain code is the same in both, so where it moved the machines' state did."""
    plain = [c.after.median / c.before.median for c in found if c.after.variant in BASELINES[0]]
    ratio = statistics.median(plain) if plain else 1.0
    if abs(ratio - 1) <= 0.1:
        return None
    return f"plain code takes {ratio:.2f} times as long: the machine was not in the same state"


def show(before: Record, after: Record) -> list[Change]:
    """Print the comparison; the changes it is about."""
    if before.device != after.device:
        print(f"different machines: {before.device} and {after.device}")
    found = changes(before, after)
    if not found:
        raise ValueError(f"{before.name} and {after.name} have no variant in common")
    moved = [change for change in found if change.moved]
    print(f"{len(moved)} of {len(found)} moved beyond their noise")
    if moved:
        width = max(len(change.after.key) for change in moved)
        print(f"{'':{width}} {'before':>10} {'after':>10} {'change':>8} {'noise':>7}")
    for change in moved:
        times = f"{change.before.median * 1e3:7.3f} ms {change.after.median * 1e3:7.3f} ms"
        print(f"{change.after.key:{width}} {times} {change.percent:+7.1f}% {change.noise:6.1f}%")
    if (moved_all := drift(found)) is not None:
        print(moved_all)
    for record, other in ((before, after), (after, before)):
        alone = only(record, other)
        if alone:
            print(f"only in {record.name}: {', '.join(alone)}")
    return moved


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="a file, or a folder of files")
    parser.add_argument("after", type=Path)
    parser.add_argument(
        "--fail-above",
        type=float,
        metavar="PERCENT",
        help="exit 1 where something became slower by more than this, beyond its noise",
    )
    options = parser.parse_args(arguments)
    try:
        after = load(options.after)
        folder = options.before.is_dir()
        moved = show(newest(options.before, after) if folder else load(options.before), after)
    except (OSError, ValueError) as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    above = options.fail_above
    return int(above is not None and any(change.percent > above for change in moved))


if __name__ == "__main__":
    sys.exit(main())
