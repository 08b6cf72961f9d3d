from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from pairwise import covering, pairwise


@pytest.mark.parametrize("sizes", [(2, 3), (1, 4, 1), (12, 3, 2), (8, 8, 2), (4, 10, 6), (2,) * 9])
def test_every_pair_of_every_two_axes_has_a_row(sizes: tuple[int, ...]) -> None:
    rows = covering(*sizes)
    for a, b in combinations(range(len(sizes)), 2):
        assert {(row[a], row[b]) for row in rows} == set(product(range(sizes[a]), range(sizes[b])))
    largest = sorted(sizes)[-1] * sorted(sizes)[-2]
    assert largest <= len(rows) <= largest + 8 and len(set(rows)) == len(rows)
    assert rows == covering(*sizes)


def test_rows_become_cases() -> None:
    flag = pytest.param(True, marks=pytest.mark.slow)
    mark = pairwise(size={"one": 1, "two": 2}, dtype=[torch.float16, torch.float32], flag=[flag])
    names, cases = mark.args
    assert names == ("size", "dtype", "flag")
    assert all(list(case.marks) == [pytest.mark.slow] for case in cases)
    assert {case.id: case.values for case in cases} == {
        f"{name}-{str(dtype)[6:]}-True": (value, dtype, True)
        for (name, value), dtype in product(
            {"one": 1, "two": 2}.items(), [torch.float16, torch.float32]
        )
    }
