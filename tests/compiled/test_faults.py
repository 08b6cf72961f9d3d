"""Faults planted in the kernels are found where the compiled code runs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from compiled.backends import installed
from compiled.executor import Executor
from compiled.faults import DENSE, FAULTS, Planted, Results, attention, small, table
from native.compilers import require_nvrtc


def marked(names: Collection[str]) -> list:
    """Those that compile for many seconds are slow: the small generator's and the tensor cores'."""
    slow = {
        name: [pytest.mark.slow] for name in names if FAULTS[name].call in (small, DENSE, attention)
    }
    return [pytest.param(name, marks=slow.get(name, ())) for name in names]


def run(planted: Planted, headers: Path | None) -> tuple[set[str], Results]:
    """Kinds of faults, and results, which are not to be relied on where there are faults."""
    executor = Executor(headers=headers)
    with installed("cuda", executor):
        try:
            results = planted.call("cuda", torch.float32)
        except RuntimeError:  # launchers raise what the device reports
            results = []
    assert executor.log
    return {fault.kind for fault in executor.faults}, results


def close(found: Results, planted: Planted) -> bool:
    wanted = planted.call("torch", torch.float64)
    atol, rtol = (1e-4, 1e-3) if planted.call != attention else (1e-2, 1e-2)  # bfloat16
    return len(found) == len(wanted) and all(
        torch.allclose(a.double(), b.double(), atol=atol, rtol=rtol)
        for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.slow
def test_found(name: str, tmp_path: Path) -> None:
    require_nvrtc()
    planted = FAULTS[name]
    kinds, results = run(planted, planted.headers(tmp_path))
    if planted.found == "wrong result":
        assert not kinds and not close(results, planted), kinds
    else:
        assert planted.found in kinds, kinds


@pytest.mark.parametrize("name", marked({p.call: n for n, p in FAULTS.items()}.values()))
def test_not_found_where_it_is_not(name: str) -> None:
    """Each call that shows faults, on the kernels as they are."""
    require_nvrtc()
    kinds, results = run(FAULTS[name], None)
    assert not kinds and close(results, FAULTS[name])


def test_table_of_the_readme() -> None:
    assert Path(__file__).with_name("README.md").read_text().endswith("\n\n" + table())
