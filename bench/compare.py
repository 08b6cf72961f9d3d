"""What moved between two result files beyond its noise: ``compare.py BEFORE.json AFTER.json``.

A time moved when its change is larger than both files' IQRs over their medians together. Files are
those of ``pytest bench --benchmark-json`` or of ``gpu_check.sh``, in any mixture.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
from records import Record, Row, load


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


def show(before: Record, after: Record) -> list[Change]:
    """Print the comparison; the changes it is about."""
    if before.device != after.device:
        print(f"different machines: {before.device} and {after.device}")
    found = changes(before, after)
    moved = [change for change in found if change.moved]
    print(f"{len(moved)} of {len(found)} moved beyond their noise")
    if moved:
        width = max(len(change.after.key) for change in moved)
        print(f"{'':{width}} {'before':>10} {'after':>10} {'change':>8} {'noise':>7}")
    for change in moved:
        times = f"{change.before.median * 1e3:7.3f} ms {change.after.median * 1e3:7.3f} ms"
        print(f"{change.after.key:{width}} {times} {change.percent:+7.1f}% {change.noise:6.1f}%")
    for record, other in ((before, after), (after, before)):
        alone = only(record, other)
        if alone:
            print(f"only in {record.name}: {', '.join(alone)}")
    return moved


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument(
        "--fail-above",
        type=float,
        metavar="PERCENT",
        help="exit 1 where something became slower by more than this, beyond its noise",
    )
    options = parser.parse_args(arguments)
    try:
        moved = show(load(options.before), load(options.after))
    except (OSError, ValueError) as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    above = options.fail_above
    return int(above is not None and any(change.percent > above for change in moved))


if __name__ == "__main__":
    sys.exit(main())
