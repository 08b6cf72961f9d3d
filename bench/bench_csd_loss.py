"""``csd_loss``, forward and backward: every backend that can run here against plain eager autograd
and torch.compile.

pytest bench/bench_csd_loss.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import SHAPES, Shape, operator_arguments, plain_score, score_inputs, size_in_bytes
from dd2_fast.ops import csd_loss
from measure import DEVICES, Call, Problem, input_sets, relative_error, usable

VARIABLES = ("x", "x_t", "fake_x0")


def plain_loss(x: Tensor, x_t: Tensor, fake_x0: Tensor, **teacher: Any) -> Tensor:
    """What one writes without this package: the fastest plain torch code we know, with autograd."""
    teacher_x0 = plain_score(x_t, **teacher)
    weight = 1 / (x - teacher_x0).detach().abs().mean(-1).clamp(min=1e-5)
    difference = teacher_x0 - fake_x0
    return weight * (difference * (teacher_x0 - x - difference)).sum(-1)


def inputs(shape: Shape, device: str, images: int, seed: int) -> dict[str, Any]:
    """Those of the conditional score, and tokens and guesses of a generator and its guidance."""
    data = score_inputs(shape, device, images=images, seed=seed)
    for key in ("x", "fake_x0"):
        data[key] = data["x_t"] + 0.3 * torch.randn_like(data["x_t"])
    for key in VARIABLES:
        data[key].requires_grad_()
    return data


def make_variant(name: str, data: dict[str, Any]) -> Callable[[], list[Tensor]]:
    """The loss and the gradients in its variables."""
    variables = [data[key] for key in VARIABLES]
    function = torch.compile(plain_loss, dynamic=False) if name == "compile" else plain_loss
    arguments = operator_arguments(data)

    def step() -> list[Tensor]:
        plain = name in ("eager", "compile")
        loss = function(**data) if plain else csd_loss(**arguments, backend=name)
        return [loss.detach(), *torch.autograd.grad(loss.sum(), variables)]

    return step


def problem(size: str, device: str) -> Problem:
    shape = SHAPES[size]
    images = shape.images(device, most=32)  # autograd keeps more copies than the score does
    sets = [inputs(shape, device, images, seed=i) for i in range(input_sets(device))]
    wanted = make_variant("eager", sets[0])()

    def check(variant: str, call: Call) -> dict[str, Any]:
        errors = [relative_error(a, b) for a, b in zip(call(), wanted, strict=True)]
        assert max(errors) < 1e-2, f"{variant} is off by {errors}: not timed"
        return {"error": max(errors)}

    return Problem(
        group=f"csd_loss {device} {size}",
        device=device,
        make=lambda variant: [make_variant(variant, data) for data in sets],
        check=check,
        bytes=size_in_bytes(*sets[0].values(), *wanted),
        # Distances, weighted sum, and both again for the Jacobian's product.
        flops=2 * 4 * images * shape.rows * shape.kept * shape.dim,
        info={"images": images},
    )


@pytest.mark.parametrize(
    ("device", "variant"),
    [(d, v) for d in DEVICES for v in ("eager", "compile", *usable(d))],
    ids=lambda v: v,
)
@pytest.mark.parametrize("size", SHAPES)
def bench_csd_loss(race: Any, size: str, device: str, variant: str) -> None:
    race(lambda: problem(size, device))
