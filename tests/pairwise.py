"""Rows of a test over independent axes: not their product, but so that every pair appears."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain, combinations
from typing import Any

import pytest


def covering(*sizes: int) -> list[tuple[int, ...]]:
    """Rows of an index into each axis, in which every two axes have every pair of their indices.

    Greedy: a row starts from the first pair that is missing and takes, axis after axis, the index
    that adds most pairs, of equals the one used least. The same sizes give the same rows.
    """
    places = [[(axis, index) for index in range(size)] for axis, size in enumerate(sizes)]
    missing = {pair for a, b in combinations(places, 2) for pair in ((p, q) for p in a for q in b)}
    used: Counter[tuple[int, int]] = Counter()
    rows = []
    while missing:
        row = dict(min(missing))
        for axis in places:
            if axis[0][0] not in row:
                row |= [max(axis, key=lambda p: (_added(row, p, missing), -used[p]))]
        used.update(row.items())
        missing -= set(combinations(sorted(row.items()), 2))
        rows.append(tuple(index for _, index in sorted(row.items())))
    return sorted(rows)


def _added(row: Mapping[int, int], place: tuple[int, int], missing: set) -> int:
    return sum(tuple(sorted((place, other))) in missing for other in row.items())


def pairwise(**axes: Mapping[str, Any] | Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrizes a test by its axes: values, a mapping of their names to values, or one-valued
    ``pytest.param`` with the marks of every row that has it."""
    cases = []
    places = [_places(axis) for axis in axes.values()]
    for row in covering(*map(len, places)):
        parts = [axis[i] for axis, i in zip(places, row, strict=True)]
        names, values, marks = zip(*parts, strict=True)
        cases.append(pytest.param(*values, id="-".join(names), marks=[*chain(*marks)]))
    return pytest.mark.parametrize(tuple(axes), cases)


def slow_except(values: Iterable[Any], *quick: Any) -> list:
    """Values of one axis, of which all but the ``quick`` ones are for ``-m slow``."""
    return [pytest.param(v, marks=[] if v in quick else [pytest.mark.slow]) for v in values]


def _places(axis: Mapping[str, Any] | Iterable[Any]) -> list[tuple[str, Any, Iterable]]:
    if isinstance(axis, Mapping):
        return [(name, value, ()) for name, value in axis.items()]
    params = [value if hasattr(value, "marks") else pytest.param(value) for value in axis]
    return [(str(p.values[0]).removeprefix("torch."), p.values[0], p.marks) for p in params]
