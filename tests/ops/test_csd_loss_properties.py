"""Properties of every backend of ``csd_loss`` on random inputs, many of them extreme."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops.exact import EPSILON, double, kept_sets, row_posterior
from ops.strategies import (
    LAYOUTS,
    Tokens,
    backends_of,
    device_of,
    examples,
    laid_out,
    poisoned_outputs,
    same_bits,
    spoil,
    tokens,
)
from torch import Tensor

from dd2_fast.ops import csd_loss

BACKENDS = backends_of("csd_loss")
VARIABLES = ("x", "x_t", "fake_x0")


@dataclass(frozen=True)
class Loss:
    """What ``csd_loss`` takes beside the teacher and its tokens."""

    x: Tensor
    fake_x0: Tensor
    incoming: Tensor  # gradient of the loss
    objective: str
    alpha: float
    weight: str | Tensor

    def rows(self, index: slice | list[int]) -> Loss:
        weight = self.weight if isinstance(self.weight, str) else self.weight[index]
        parts = {name: getattr(self, name)[index] for name in ("x", "fake_x0", "incoming")}
        return replace(self, **parts, weight=weight)


@st.composite
def cases(draw: st.DrawFn, least_rows: int = 0) -> tuple[Tokens, Loss]:
    case = draw(tokens(least_rows=least_rows))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = case.x_t.shape
    weight = draw(st.sampled_from(["sid", "none", "tensor"]))
    loss = Loss(
        torch.randn(shape[0], shape[-1], generator=generator),
        torch.randn(shape, generator=generator),
        torch.randn(shape[:-1], generator=generator),
        draw(st.sampled_from(["sid", "sid", "dmd"])),
        draw(st.sampled_from([1.0, 1.0, 0.0, 1.2, -2.0])),
        torch.rand(shape[:-1], generator=generator) + 0.1 if weight == "tensor" else weight,
    )
    return case, loss


def value_and_gradients(
    case: Tokens, loss: Loss, backend: str, layout: str = "plain"
) -> list[Tensor]:
    """The loss and its gradients in x, x_t and F on the CPU, computed into poisoned outputs."""
    device = device_of(backend)
    arguments = case.arguments(device, layout)
    arguments["x_t"] = arguments["x_t"].float()
    arguments["x"], arguments["fake_x0"] = (
        laid_out(value.to(device), layout) for value in (loss.x, loss.fake_x0)
    )
    leaves = {name: arguments[name].detach().requires_grad_() for name in VARIABLES}
    weight = loss.weight if isinstance(loss.weight, str) else loss.weight.to(device)
    settings = {"objective": loss.objective, "alpha": loss.alpha, "weight": weight}
    with poisoned_outputs():
        value = csd_loss(**{**arguments, **leaves, **settings}, backend=backend)
        gradients = torch.autograd.grad(
            value,
            list(leaves.values()),
            loss.incoming.to(value),
            allow_unused=True,
            materialize_grads=True,
        )
    assert value.dtype == torch.float32 and value.shape == loss.incoming.shape
    return [v.detach().cpu() for v in (value, *gradients)]


def norms(value: np.ndarray) -> np.ndarray:
    return np.linalg.norm(value, axis=-1)


def exact_row(
    case: Tokens, loss: Loss, row: int, kept: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """A row's loss ``[M]`` and gradients ``[M, C]``, that in x not yet summed over draws, each with
    a bound ``[M]`` on its rounding: of D and J from the posterior, of differences and products."""
    dim = loss.x.shape[-1]
    x, fake = double(loss.x[row]), double(loss.fake_x0[row]).reshape(-1, dim)
    alpha, dmd = loss.alpha, loss.objective == "dmd"
    p = row_posterior(case, row, kept, fake - x)
    difference = p.x0 - fake
    other = -x if dmd else p.x0 - x - alpha * difference
    to_teacher = other + (1 - alpha) * difference  # dL/dD before the weight
    if alpha != 1 and not dmd:
        p = row_posterior(case, row, kept, to_teacher)
    mean = np.abs(x - p.x0).mean(-1)
    weight = 1 / mean.clip(min=1e-5)
    doubt = p.x0_rounding / mean.clip(min=1e-5) + dim * EPSILON  # relative, of the weight
    if not isinstance(loss.weight, str):
        weight = double(loss.weight[row]).reshape(-1)
    if loss.weight != "sid":
        weight, doubt = (
            np.broadcast_to(weight if loss.weight != "none" else 1.0, mean.shape),
            EPSILON,
        )
    sizes = norms(p.x0) + norms(fake), norms(p.x0) + norms(x) + abs(alpha) * norms(p.x0 - fake)
    near = p.x0_rounding + 4 * EPSILON * (sizes[0] + sizes[1])
    slope = 1 + 2 * abs(alpha)
    value = weight * (difference * other).sum(-1)
    scale = weight * double(loss.incoming[row]).reshape(-1)
    gradients = [-difference, p.along, alpha * difference - other]
    slacks = [near, p.along_rounding + slope * near * p.steepness, slope * near]
    if dmd:
        gradients[1:] = [np.zeros_like(fake)] * 2
        slacks[1:] = [np.zeros_like(mean)] * 2
    product = slope * near * (sizes[0] + sizes[1]) + dim * EPSILON * sizes[0] * sizes[1]
    pairs = [(value, weight * product + 2 * doubt * np.abs(value))]
    for gradient, slack in zip(gradients, slacks, strict=True):
        gradient = scale[:, None] * gradient
        doubted = 2 * (doubt + 4 * EPSILON) * norms(gradient)
        pairs.append((gradient, np.abs(scale) * slack + doubted + 1e-30))
    return pairs


@BACKENDS
@examples(60)
@given(inputs=cases(), layout=st.sampled_from(LAYOUTS))
def test_float64_explains_every_token(
    backend: str, inputs: tuple[Tokens, Loss], layout: str
) -> None:
    case, loss = inputs
    if layout == "expanded" and len(case.t):
        case, loss = (part.rows([0] * len(case.t)) for part in inputs)
    results = value_and_gradients(case, loss, backend, layout)
    for row in range(len(case.t) if case.x_t.numel() else 0):
        value, *gradients = (double(result[row]) for result in results)
        sets = kept_sets(case.teacher, row)
        if not sets:
            assert np.isnan(value).all()
            continue
        assert any(explains(exact_row(case, loss, row, k), value, gradients) for k in sets), row


def explains(
    pairs: list[tuple[np.ndarray, np.ndarray]], value: np.ndarray, gradients: list[np.ndarray]
) -> bool:
    (exact, slack), (in_x, x_slack), *others = pairs
    pairs = [(in_x.sum(0, keepdims=True), x_slack.sum()), *others]
    right = (np.abs(value.reshape(exact.shape) - exact) <= slack).all()
    for gradient, (wanted, allowed) in zip(gradients, pairs, strict=True):
        right &= (norms(gradient.reshape(wanted.shape) - wanted) <= allowed).all()
    return bool(right)


@BACKENDS
@examples(40)
@given(inputs=cases(least_rows=1), data=st.data())
def test_a_bad_value_spoils_its_row_alone(
    backend: str, inputs: tuple[Tokens, Loss], data: st.DataObject
) -> None:
    case, loss = inputs
    if not case.x_t.numel():
        return
    clean = value_and_gradients(case, loss, backend)
    row = data.draw(st.integers(0, len(case.t) - 1))
    name = data.draw(st.sampled_from(["teacher", "x_t", "x", "fake_x0"]))
    if name == "teacher":
        case = replace(case, teacher=spoil(case.teacher, row, data))
        spoiled = not kept_sets(case.teacher, row)
    else:
        owner = case if name == "x_t" else loss
        value = getattr(owner, name).clone()
        value[row] = math.nan
        spoiled = True
        if name == "x_t":
            case = replace(case, x_t=value)
        else:
            loss = replace(loss, **{name: value})
    others = torch.arange(len(case.t)) != row
    after = value_and_gradients(case, loss, backend)
    assert not spoiled or after[0][row].isnan().all()
    for value, before in zip(after, clean, strict=True):
        assert same_bits(value[others], before[others])


@BACKENDS
@examples(40)
@given(inputs=cases(least_rows=1), data=st.data())
def test_a_part_of_a_batch_gets_the_bits_of_the_whole(
    backend: str, inputs: tuple[Tokens, Loss], data: st.DataObject
) -> None:
    if backend == "torch":
        pytest.skip("a matrix library rounds by the shape")
    case, loss = inputs
    first = data.draw(st.integers(0, len(case.t) - 1))
    part = slice(first, data.draw(st.integers(first + 1, len(case.t))))
    whole = value_and_gradients(case, loss, backend)
    alone = value_and_gradients(case.rows(part), loss.rows(part), backend)
    for value, wanted in zip(alone, whole, strict=True):
        assert same_bits(value, wanted[part])
