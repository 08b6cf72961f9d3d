"""What torch keeps for a whole process or thread changes no operator's result: default dtype and
device, autocast, grad and inference modes, deterministic mode, threads, denormals."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from ops.calls import DIFFERENTIABLE, FUNCTIONS, arguments, backed
from ops.cases import INTERPRETED
from torch import Tensor

from dd2_fast.ops import default_backend

BACKENDS = ["triton"] if INTERPRETED else ["torch", "cpu"]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


STATES: dict[str, AbstractContextManager] = {
    "float64": default_dtype(torch.float64),
    "bfloat16": default_dtype(torch.bfloat16),
    "autocast": torch.autocast("cpu", torch.bfloat16),
    "autocast_half": torch.autocast("cpu", torch.float16),
    "meta": torch.device("meta"),
    "cpu": torch.device("cpu"),
    "deterministic": deterministic(),
    "no_grad": torch.no_grad(),
    "inference": torch.inference_mode(),
    "three_threads": threads(3),
    "eight_threads": threads(8),
    "flushed_denormals": flushed_denormals(),
}


def make_state(name: str) -> AbstractContextManager:
    """A new one: those of contextmanager can be entered once."""
    makers = {
        "float64": lambda: default_dtype(torch.float64),
        "bfloat16": lambda: default_dtype(torch.bfloat16),
        "deterministic": deterministic,
        "three_threads": lambda: threads(3),
        "eight_threads": lambda: threads(8),
        "flushed_denormals": flushed_denormals,
    }
    return makers[name]() if name in makers else STATES[name]


@pytest.mark.parametrize(("op", "backend"), backed(BACKENDS))
@pytest.mark.parametrize("state", STATES)
def test_forward(op: str, backend: str, state: str) -> None:
    given = arguments(op)
    with default_backend(backend):
        wanted = FUNCTIONS[op](**given)
        with make_state(state):
            result = FUNCTIONS[op](**given)
    assert result.device == wanted.device
    torch.testing.assert_close(result, wanted, atol=1e-6, rtol=1e-6)
    assert result.is_inference() == (state == "inference")


@pytest.mark.parametrize(("op", "backend"), backed(BACKENDS))
@pytest.mark.parametrize("state", ["float64", "autocast", "meta", "inference"])
def test_numbers_and_halves(op: str, backend: str, state: str) -> None:
    """Numbers in place of tensors, and inputs of half precision, take no dtype from around them."""
    given = arguments(op)
    numbers = {"t": 0.7, "guidance_scale": 1.5, "seed": 11}
    given |= {name: value for name, value in numbers.items() if name in given}
    given = {
        name: value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in given.items()
    }
    with default_backend(backend):
        wanted = FUNCTIONS[op](**given)
        with make_state(state):
            result = FUNCTIONS[op](**given)
    of_input = op in ("block_causal_attention", "group_norm_silu")
    assert wanted.dtype in ((torch.bfloat16,) if of_input else (torch.float32, torch.int64))
    # The linear head's product is in the dtype of hidden.
    torch.testing.assert_close(result, wanted, atol=1e-6, rtol=1e-6)


def gradients(op: str, given: dict, inside: AbstractContextManager) -> tuple[Tensor, ...]:
    tensors = [given[name].clone().requires_grad_() for name in DIFFERENTIABLE[op]]
    given = {**given, **dict(zip(DIFFERENTIABLE[op], tensors, strict=True))}
    with inside:
        return torch.autograd.grad(FUNCTIONS[op](**given).square().sum(), tensors)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("state", [s for s in STATES if s not in ("no_grad", "inference")])
def test_backward(op: str, backend: str, state: str) -> None:
    given = arguments(op)
    with default_backend(backend):
        wanted = gradients(op, given, contextlib.nullcontext())
        results = gradients(op, given, make_state(state))
    for result, gradient in zip(results, wanted, strict=True):
        torch.testing.assert_close(result, gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_constants_from_inference_mode(op: str, backend: str) -> None:
    """A teacher runs in inference mode, and its logits then serve a student that trains."""
    given = arguments(op)
    with torch.inference_mode():
        constants = {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in given.items()
            if name not in DIFFERENTIABLE[op]
        }
    with default_backend(backend):
        wanted = gradients(op, given, contextlib.nullcontext())
        results = gradients(op, {**given, **constants}, contextlib.nullcontext())
    for result, gradient in zip(results, wanted, strict=True):
        assert torch.equal(result, gradient) and not result.is_inference()


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_of_the_reference_under_autocast(backend: str) -> None:
    if backend != "torch":
        pytest.skip("differentiable once")
    given = arguments("conditional_score")
    x_t = given.pop("x_t").requires_grad_()

    def second(inside: AbstractContextManager) -> Tensor:
        with inside:
            score = FUNCTIONS["conditional_score"](x_t, **given, backend="torch")
            (first,) = torch.autograd.grad(score.square().sum(), x_t, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x_t)[0]

    wanted = second(contextlib.nullcontext())
    result = second(torch.autocast("cpu", torch.bfloat16))
    torch.testing.assert_close(result, wanted, atol=1e-3, rtol=1e-4)
