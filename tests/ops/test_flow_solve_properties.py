"""Properties of every backend of ``flow_solve`` on random inputs, many of them extreme."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops.exact import double, guided_row, kept_sets
from ops.strategies import (
    LAYOUTS,
    Tokens,
    backends_of,
    device_of,
    examples,
    poisoned_outputs,
    spoil,
    tokens,
)
from torch import Tensor

from dd2_fast.ops import flow_solve

BACKENDS = backends_of("flow_solve")
STEPS = st.sampled_from([1, 2, 3, 7, 20])
SOLVERS = st.sampled_from(["heun", "euler"])
SHAKEN = 64  # paths tried from noise moved by about SHAKE, where rounding may decide
SHAKE = 1e-4


def flow(case: Tokens, steps: int, solver: str, backend: str, layout: str = "plain") -> Tensor:
    """Codes on the CPU, written into poisoned outputs; ``x_t`` is the noise."""
    arguments = case.arguments(device_of(backend), layout)
    noise = arguments.pop("x_t")
    del arguments["t"]
    with poisoned_outputs():
        codes = flow_solve(noise, **arguments, steps=steps, solver=solver, backend=backend)
    assert codes.dtype == torch.int64 and codes.shape == case.t.shape
    return codes.cpu()


def ends(
    x: np.ndarray, logits: np.ndarray, codes: np.ndarray, steps: int, solver: str
) -> np.ndarray:
    """Where paths from ``x [M, C]`` end, in float64."""

    def mean(x: np.ndarray, t: float) -> np.ndarray:
        distance = ((x[:, None] - (1 - t) * codes) ** 2).sum(-1)
        exponent = logits - distance / (2 * t * t)
        weights = np.exp(exponent - exponent.max(-1, keepdims=True))
        return weights @ codes / weights.sum(-1, keepdims=True)

    for i in range(steps, 1, -1):
        t, s = i / steps, (i - 1) / steps
        velocity = (x - mean(x, t)) / t
        ahead = x + (s - t) * velocity
        second = (ahead - mean(ahead, s)) / s if solver == "heun" else velocity
        x = x + (s - t) / 2 * (velocity + second)
    return mean(x, 1 / steps)


def explains(
    noise: np.ndarray, found: np.ndarray, logits: np.ndarray, codes: np.ndarray,
    kept: np.ndarray, steps: int, solver: str,
) -> bool:  # fmt: skip
    """Whether each path of a row ends at a code as near as any, or does from noise a little off."""
    kept = np.sort(kept)
    if not np.isin(found, kept).all():
        return False
    shaken = np.random.default_rng(0).normal(size=(SHAKEN, noise.shape[1])) * SHAKE

    def near(noise: np.ndarray, code: int) -> bool:
        end = ends(noise, logits[kept], codes[kept], steps, solver)
        distance = ((end[:, None] - codes[kept]) ** 2).sum(-1)
        mine = ((end - codes[code]) ** 2).sum(-1)
        return bool((mine <= distance.min(-1) + SHAKE * (1 + mine)).any())

    return all(
        near(token[None], code) or near(token + shaken, code)
        for token, code in zip(noise, found, strict=True)
    )


@BACKENDS
@examples(50)
@given(tokens(st.just(1.0)), STEPS, SOLVERS, st.sampled_from(LAYOUTS))
def test_float64_explains_every_code(
    backend: str, case: Tokens, steps: int, solver: str, layout: str
) -> None:
    """The path ends nearest to the code, among a set of codes that the row may keep, or a path from
    noise within rounding does. Of equal codes the first is found."""
    if layout == "expanded" and len(case.t):
        case = case.rows([0] * len(case.t))
    result = flow(case, steps, solver, backend, layout)
    codes = double(case.codebook)
    for row in range(len(case.t) if case.x_t.numel() else 0):
        found, sets = result[row].reshape(-1).numpy(), kept_sets(case.teacher, row)
        if not sets:
            assert (found == -1).all()
            continue
        noise = double(case.x_t[row]).reshape(len(found), -1)
        logits = guided_row(case.teacher, row)
        assert any(explains(noise, found, logits, codes, k, steps, solver) for k in sets), row
        for code in set(found.tolist()):
            equal = np.flatnonzero((codes == codes[code]).all(-1))
            assert any(np.intersect1d(equal, kept).min() == code for kept in sets)


@BACKENDS
@examples(40)
@given(tokens(st.just(1.0), least_rows=1), STEPS, SOLVERS, st.data())
def test_rows_are_solved_apart(
    backend: str, case: Tokens, steps: int, solver: str, data: st.DataObject
) -> None:
    """A bad value changes its own row alone, and so does the rest of a batch."""
    if not case.x_t.numel():
        return
    codes = flow(case, steps, solver, backend)
    row = data.draw(st.integers(0, len(codes) - 1))
    if backend != "torch":
        assert torch.equal(flow(case.rows([row]), steps, solver, backend), codes[[row]])
    noise, teacher = case.x_t.clone(), case.teacher
    if data.draw(st.booleans()):
        noise[row] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
        spoiled = True
    else:
        teacher = spoil(teacher, row, data)
        spoiled = not kept_sets(teacher, row)
    after = flow(Tokens(teacher, noise, case.t, case.codebook), steps, solver, backend)
    assert not spoiled or (after[row] == -1).all()
    others = torch.arange(len(codes)) != row
    assert torch.equal(after[others], codes[others])
