"""Properties of every backend of ``sample_code`` on random inputs, many of them extreme."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops.exact import guided_row, kept_sets
from ops.strategies import (
    LAYOUTS,
    Teacher,
    backends_of,
    device_of,
    examples,
    poisoned_outputs,
    spoil,
    teachers,
)
from torch import Tensor

from dd2_fast.ops import sample_code
from dd2_fast.ops.philox import row_uniform
from dd2_fast.ops.sample_code.reference import STREAM

BACKENDS = backends_of("sample_code")
SEEDS = st.integers(-(2**63), 2**63 - 1)
TEMPERATURES = st.sampled_from([1.0, 1.0, 0.7, 3.0, 1e-4, 1e4, 1e-30, 1e30])
SHARE_ROUNDING = 2e-6  # of a row's total mass


def draw_codes(
    teacher: Teacher, temperature: float, seed: int, backend: str, layout: str = "plain"
) -> Tensor:
    """Codes on the CPU, written into poisoned outputs."""
    arguments = teacher.arguments(device_of(backend), layout)
    with poisoned_outputs():
        codes = sample_code(**arguments, temperature=temperature, seed=seed, backend=backend)
    assert codes.dtype == torch.int64 and codes.shape == teacher.logits.shape[:1]
    return codes.cpu()


@BACKENDS
@examples(100)
@given(teachers(), TEMPERATURES, SEEDS, st.sampled_from(LAYOUTS))
def test_float64_explains_every_draw(
    backend: str, teacher: Teacher, temperature: float, seed: int, layout: str
) -> None:
    """The uniform of the row falls into the code's share of the mass of a set of codes that the row
    may keep, or within rounding of it."""
    if layout == "expanded" and len(teacher.logits):
        teacher = teacher.rows([0] * len(teacher.logits))
    codes = draw_codes(teacher, temperature, seed, backend, layout)
    uniforms = row_uniform(torch.tensor(seed), torch.arange(len(codes)), STREAM)
    for row, (code, uniform) in enumerate(zip(codes.tolist(), uniforms.tolist(), strict=True)):
        sets = kept_sets(teacher, row, 1 / temperature)
        if not sets:
            assert code == -1
            continue
        guided = guided_row(teacher, row, 1 / temperature)
        assert any(explains(guided, kept, code, uniform) for kept in sets), f"row {row}"


def explains(guided: np.ndarray, kept: np.ndarray, code: int, uniform: float) -> bool:
    mass = np.zeros_like(guided)
    mass[kept] = np.exp(guided[kept] - guided[kept].max())
    if not 0 <= code < len(mass) or mass[code] == 0:
        return False
    ends = np.cumsum(mass) / mass.sum()
    begin = ends[code] - mass[code] / mass.sum()
    return bool(begin - SHARE_ROUNDING <= uniform <= ends[code] + SHARE_ROUNDING)


@BACKENDS
@examples(60)
@given(teachers(least_rows=1), TEMPERATURES, SEEDS, st.data())
def test_rows_are_drawn_apart(
    backend: str, teacher: Teacher, temperature: float, seed: int, data: st.DataObject
) -> None:
    """A bad value changes its own row alone, and so do the rows that follow."""
    codes = draw_codes(teacher, temperature, seed, backend)
    row = data.draw(st.integers(0, len(codes) - 1))
    part = draw_codes(teacher.rows(slice(0, row + 1)), temperature, seed, backend)
    assert torch.equal(part, codes[: row + 1])
    spoiled = spoil(teacher, row, data)
    after = draw_codes(spoiled, temperature, seed, backend)
    if not kept_sets(spoiled, row, 1 / temperature):
        assert after[row] == -1
    others = torch.arange(len(codes)) != row
    assert torch.equal(after[others], codes[others])
