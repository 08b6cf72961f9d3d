"""Properties of every backend of ``conditional_score`` on random inputs, many of them extreme."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops.exact import EPSILON, Posterior, additions, double, guided_row, kept_sets, row_posterior
from ops.strategies import (
    LAYOUTS,
    ORDINARY,
    TINY_NOISE,
    Tokens,
    backends_of,
    device_of,
    examples,
    poisoned_outputs,
    same_bits,
    spoil,
    tokens,
)
from torch import Tensor

from dd2_fast.ops import conditional_score

BACKENDS = backends_of("conditional_score")


def x0_and_gradient(
    case: Tokens, u: Tensor, backend: str, layout: str = "plain"
) -> tuple[Tensor, Tensor]:
    """x0 and J u on the CPU, computed into poisoned outputs."""
    arguments = case.arguments(device_of(backend), layout)
    x_t = arguments.pop("x_t").float().requires_grad_()
    with poisoned_outputs():
        x0 = conditional_score(x_t, **arguments, prediction="x0", backend=backend)
        (gradient,) = torch.autograd.grad(x0, x_t, u.to(x0))
    assert x0.dtype == torch.float32
    return x0.detach().cpu(), gradient.cpu()


def directions(case: Tokens) -> Tensor:
    return torch.randn(case.x_t.shape, generator=torch.Generator().manual_seed(1))


def norms(difference: np.ndarray) -> np.ndarray:
    return np.linalg.norm(difference, axis=-1)


def explains(p: Posterior, x0: np.ndarray, along: np.ndarray) -> bool:
    errors = norms(x0 - p.x0) / p.x0_rounding, norms(along - p.along) / (p.along_rounding + 1e-30)
    return max(error.max() for error in errors) <= 1


@BACKENDS
@examples(60)
@given(case=tokens(), layout=st.sampled_from(LAYOUTS))
def test_float64_explains_every_token(backend: str, case: Tokens, layout: str) -> None:
    """Every token's x0 and gradient are within float32 rounding of the definition, under one of the
    sets of codes that its row may keep; and over a batch x0 is within 1e-4 of its norm, or else
    within twice the error of eager float32."""
    if layout == "expanded" and len(case.t):
        case = case.rows([0] * len(case.t))
    u = directions(case)
    results = x0_and_gradient(case, u, backend, layout)
    eager, _ = x0_and_gradient(case, u, "torch")
    squares = np.zeros(3)
    for row in range(len(case.t) if u.numel() else 0):
        x0, along, rough = (double(v[row]).reshape(-1, u.shape[-1]) for v in (*results, eager))
        sets = kept_sets(case.teacher, row)
        if not sets:
            assert np.isnan(x0).all() and np.isnan(along).all()
            continue
        direction = double(u[row]).reshape(x0.shape)
        candidates = (row_posterior(case, row, kept, direction) for kept in sets)
        p = next((p for p in candidates if explains(p, x0, along)), None)
        assert p is not None, f"row {row}"
        squares += [np.square(value).sum() for value in (x0 - p.x0, rough - p.x0, p.x0)]
    error, eager_error, norm = np.sqrt(squares)
    assert error <= max(1e-4 * norm, 2 * eager_error)


@BACKENDS
@examples(60)
@given(case=tokens(TINY_NOISE, ORDINARY, least_rows=1))
def test_tiny_noise_gives_the_nearest_codes(backend: str, case: Tokens) -> None:
    """x0 lies between the codes whose posterior float32 cannot tell from the largest: exponents
    differ by the rounding of their two parts, or by so little that the weights do not underflow."""
    u = directions(case)
    x0, gradient = x0_and_gradient(case, u, backend)
    codes = double(case.codebook)
    for row, token in np.ndindex(len(case.t), u[:1].numel() // u.shape[-1]):
        x_t, value, along = (
            double(tensor[row]).reshape(-1, u.shape[-1])[token]
            for tensor in (case.x_t, x0, gradient)
        )
        sets = kept_sets(case.teacher, row)
        if not sets:
            assert np.isnan(value).all() and np.isnan(along).all()
            continue
        assert np.isfinite(along).all()
        t, logits = double(case.t[row]).reshape(-1)[token], guided_row(case.teacher, row)
        assert any(
            within(value, near_best(x_t, t, logits[kept], codes[kept]), len(kept)) for kept in sets
        )


def near_best(x_t: np.ndarray, t: float, logits: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The codes with a weight that is not sure to be 0 in float32, whose 2 t^2 is normal."""
    two_t2 = max(2 * t * t, float(np.finfo(np.float32).tiny))
    distance = ((x_t - (1 - t) * codes) ** 2).sum(-1)
    score = two_t2 * (logits - logits.max()) - distance
    size = (x_t**2).sum() + (codes**2).sum(-1) + two_t2 * (logits.max() - logits)
    doubt = 16 * EPSILON * size + 110 * two_t2
    return codes[score + doubt >= (score - doubt).max()]


def within(value: np.ndarray, codes: np.ndarray, terms: int) -> bool:
    slack = additions(terms) * EPSILON * np.abs(codes).max()
    inside = (value >= codes.min(0) - slack) & (value <= codes.max(0) + slack)
    return bool(inside.all())


@BACKENDS
@examples(40)
@given(case=tokens(least_rows=1), data=st.data())
def test_a_bad_value_spoils_its_row_alone(backend: str, case: Tokens, data: st.DataObject) -> None:
    u = directions(case)
    if not u.numel():
        return
    row = data.draw(st.integers(0, len(u) - 1))
    clean = x0_and_gradient(case, u, backend)
    spoiled = torch.zeros(case.t.shape, dtype=torch.bool)
    if data.draw(st.booleans()):
        case = replace(case, teacher=spoil(case.teacher, row, data))
        same = spoiled.clone()
        same[row] = True
        if not kept_sets(case.teacher, row):
            spoiled[row] = True
    else:
        x_t = case.x_t.clone()
        x_t[row].view(-1)[data.draw(st.integers(0, x_t[row].numel() - 1))] = math.nan
        case = replace(case, x_t=x_t)
        same = spoiled = x_t.isnan().any(-1)
    for value, before in zip(x0_and_gradient(case, u, backend), clean, strict=True):
        assert value[spoiled].isnan().all()
        assert same_bits(value[~same], before[~same])


@BACKENDS
@examples(60)
@given(case=tokens(least_rows=1), data=st.data())
def test_a_part_of_a_batch_gets_the_bits_of_the_whole(
    backend: str, case: Tokens, data: st.DataObject
) -> None:
    """Not so of the reference: the products of a matrix library depend on its size."""
    if backend == "torch":
        pytest.skip("a matrix library rounds by the shape")
    u = directions(case)
    whole = x0_and_gradient(case, u, backend)
    first = data.draw(st.integers(0, len(u) - 1))
    last = data.draw(st.integers(first + 1, len(u)))
    part = x0_and_gradient(case.rows(slice(first, last)), u[first:last], backend)
    for value, wanted in zip(part, whole, strict=True):
        assert same_bits(value, wanted[first:last])
    if u.ndim == 3 and u.shape[1]:
        draw = data.draw(st.integers(0, u.shape[1] - 1))
        one = replace(case, x_t=case.x_t[:, draw], t=case.t[:, draw])
        for value, wanted in zip(x0_and_gradient(one, u[:, draw], backend), whole, strict=True):
            assert same_bits(value, wanted[:, draw])


@BACKENDS
@examples(20)
@given(case=tokens())
def test_predictions_and_low_precision_tokens(backend: str, case: Tokens) -> None:
    """Velocity and score follow from x0; tokens and codes of a low precision are only widened."""
    arguments = case.arguments(device_of(backend))
    wide = {**arguments, "x_t": arguments["x_t"].float(), "codebook": arguments["codebook"].float()}
    t = arguments["t"][..., None]
    x0 = conditional_score(**arguments, prediction="x0", backend=backend)
    velocity = conditional_score(**arguments, prediction="velocity", backend=backend)
    score = conditional_score(**arguments, prediction="score", backend=backend)
    assert same_bits(x0, conditional_score(**wide, prediction="x0", backend=backend))
    assert same_bits(velocity, (wide["x_t"] - x0) / t)
    assert same_bits(score, ((1 - t) * x0 - wide["x_t"]) / (t * t))
