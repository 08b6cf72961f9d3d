"""Tensors of unusual kinds as arguments: the right result, or an error that names the argument."""

from __future__ import annotations

import math

import pytest
import torch
from ops.calls import DIFFERENTIABLE, FUNCTIONS, TENSORS, arguments, backed
from torch import Tensor

from dd2_fast.ops import default_backend

EVERY_TENSOR = pytest.mark.parametrize(("op", "name"), TENSORS)
HERE = pytest.mark.parametrize(
    ("op", "backend", "name"),
    [
        (op, backend, name)
        for op, backend in backed(["torch", "cpu"])
        for of, name in TENSORS
        if of == op
    ],
)


def changed(op: str, name: str, change) -> dict:
    given = arguments(op)
    return {**given, name: change(given[name])}


def released(value: Tensor, left: int = 0) -> Tensor:
    value = value.clone()
    value.untyped_storage().resize_(left)
    return value


@EVERY_TENSOR
@pytest.mark.parametrize("left", [0, 1])
def test_released_storage_is_an_error(op: str, name: str, left: int) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected .*storage has been released"):
        FUNCTIONS[op](**changed(op, name, lambda value: released(value, left)))


@pytest.mark.parametrize("op", DIFFERENTIABLE)
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_storage_released_before_the_backward_pass(op: str, alpha: float) -> None:
    """Backward reads the teacher's tensors again, except of csd_loss at alpha 1."""
    given = arguments(op)
    variable, constant = "x_t", "codebook"
    if op == "logit_distillation_loss":
        variable, constant = "logits", "teacher_logits"
    given[variable].requires_grad_()
    if op == "csd_loss":
        given["alpha"] = alpha
    result = FUNCTIONS[op](**given)
    given[constant].untyped_storage().resize_(0)
    if op == "csd_loss" and alpha == 1:
        result.sum().backward()
        return
    with pytest.raises(ValueError, match=f"^{constant}: .*storage has been released"):
        result.sum().backward()


def test_views_reach_as_far_as_they_need() -> None:
    given = arguments("nearest_code")
    x = given["x"]
    last = torch.cat([torch.full_like(x, math.nan).flatten(), x.flatten()])[x.numel() :]
    first = x[:1, :1].expand(3, 4, -1)
    wanted = FUNCTIONS["nearest_code"](**given)
    assert torch.equal(FUNCTIONS["nearest_code"](**{**given, "x": last.view_as(x)}), wanted)
    assert FUNCTIONS["nearest_code"](**{**given, "x": first}).unique() == wanted[0, 0]
    last.untyped_storage().resize_((2 * x.numel() - 1) * 4)
    with pytest.raises(ValueError, match="^x: .*released"):
        FUNCTIONS["nearest_code"](**{**given, "x": last})


def _nested(value: Tensor) -> Tensor:
    return torch.nested.nested_tensor([value, value])


UNUSUAL = {
    "sparse": (lambda value: value.to_sparse(), "dense tensor, got sparse_coo"),
    "csr": (lambda value: value.reshape(1, -1).to_sparse_csr(), "dense tensor, got sparse_csr"),
    "nested": (_nested, "dense tensor, got a nested tensor"),
    "complex": (lambda value: value.to(torch.complex64), "dtype .*complex64"),
    "bool": (lambda value: value > 0, "dtype .*bool"),
    "quantised": (
        lambda value: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
        "dtype .*qint8",
    ),
    "float8": (lambda value: value.to(torch.float8_e5m2), "dtype .*float8"),
}


@EVERY_TENSOR
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_tensors_are_errors(op: str, name: str, kind: str) -> None:
    make, message = UNUSUAL[kind]
    with pytest.raises(TypeError, match=f"^{name}: expected .*{message}"):
        FUNCTIONS[op](**changed(op, name, make))


@EVERY_TENSOR
def test_meta_beside_others_is_an_error(op: str, name: str) -> None:
    with pytest.raises(ValueError, match="expected device"):
        FUNCTIONS[op](**changed(op, name, lambda value: value.to("meta")))


@pytest.mark.parametrize("op", FUNCTIONS)
def test_meta_tensors_give_shapes(op: str) -> None:
    given = arguments(op)
    moved = {n: v.to("meta") if isinstance(v, Tensor) else v for n, v in given.items()}
    result, wanted = FUNCTIONS[op](**moved), FUNCTIONS[op](**given)
    assert result.is_meta and result.shape == wanted.shape and result.dtype == wanted.dtype


@HERE
def test_negative_views(op: str, name: str, backend: str) -> None:
    """A tensor whose sign is a bit of its, as the imaginary part of a conjugate has."""
    given = arguments(op)
    if not given[name].is_floating_point():
        pytest.skip("integers have no such bit")
    parts = torch.complex(torch.zeros_like(given[name]), -given[name])
    negative = parts.conj().imag
    assert negative.is_neg() and torch.equal(negative, given[name])
    with default_backend(backend):
        wanted = FUNCTIONS[op](**given)
        assert torch.equal(FUNCTIONS[op](**{**given, name: negative}), wanted)


class Subclass(Tensor):
    """A tensor with nothing of its own, as libraries tag theirs."""


@HERE
def test_plain_subclasses(op: str, name: str, backend: str) -> None:
    with default_backend(backend):
        wanted = FUNCTIONS[op](**arguments(op))
        result = FUNCTIONS[op](**changed(op, name, lambda value: value.as_subclass(Subclass)))
    assert torch.equal(result.as_subclass(Tensor), wanted)


@HERE
def test_bytes_that_begin_anywhere(op: str, name: str, backend: str) -> None:
    """Floats and integers that no vector load may read, and that no address divides."""
    given = arguments(op)
    value, size = given[name], given[name].element_size()
    room = torch.zeros(value.numel() * size + 2 * size, dtype=torch.uint8)
    part = room[size : size + value.numel() * size].view(value.dtype).view_as(value).copy_(value)
    with default_backend(backend):
        wanted = FUNCTIONS[op](**given)
        assert torch.equal(FUNCTIONS[op](**{**given, name: part}), wanted)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed")
def test_distributed_tensors_are_errors(process_group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    for op, name in TENSORS:
        make = changed(op, name, lambda value: distribute_tensor(value, mesh, [Replicate()]))
        with pytest.raises(TypeError, match=f"^{name}: expected a plain tensor, got a DTensor"):
            FUNCTIONS[op](**make)
