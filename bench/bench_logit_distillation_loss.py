"""``logit_distillation_loss``, forward and backward: every backend that can run here against plain
eager autograd and torch.compile.

pytest bench/bench_logit_distillation_loss.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cases import SHAPES, filtered, score_inputs, size_in_bytes
from dd2_fast.ops import logit_distillation_loss
from measure import DEVICES, Call, Problem, input_sets, relative_error, usable

SIZES = ("tiny", "var", "var_filtered", "llamagen_filtered")
TEACHER = ("logits", "uncond", "scale", "top_k", "top_p")


def plain_loss(student: Tensor, *teacher: Any) -> Tensor:
    """What one writes without this package: mask by sorting, two softmaxes, torch's divergence."""
    with torch.no_grad():
        p = filtered(*teacher).softmax(-1)
    return F.kl_div(student.float().log_softmax(-1), p, reduction="none").sum(-1)


def make_variant(name: str, data: tuple[Any, ...]) -> Callable[[], list[Tensor]]:
    """The loss and the gradient of its mean in the student's logits."""
    student, logits, uncond, scale, top_k, top_p = data
    function = torch.compile(plain_loss, dynamic=False) if name == "compile" else plain_loss
    options = {"guidance_scale": scale, "top_k": top_k, "top_p": top_p, "backend": name}

    def step() -> list[Tensor]:
        if name in ("eager", "compile"):
            loss = function(*data)
        else:
            loss = logit_distillation_loss(student, logits, uncond_logits=uncond, **options)
        return [loss.detach(), *torch.autograd.grad(loss.mean(), student)]

    return step


def problem(size: str, device: str) -> Problem:
    shape = SHAPES[size]
    images = shape.images(device, most=32)  # autograd keeps more copies than the score does
    sets = []
    for i in range(input_sets(device)):
        data = score_inputs(shape, device, images=images, seed=i)
        student = (data["logits"] + torch.randn_like(data["logits"])).requires_grad_()
        sets.append((student, *(data[key] for key in TEACHER)))
    loss, gradient = make_variant("eager", sets[0])()

    def check(variant: str, call: Call) -> dict[str, Any]:
        value, slope = call()
        # A code at the very edge of top-p may go either way; gradients round to their dtype.
        limits = {"loss_error": 1e-3, "gradient_error": 1e-3 if device == "cpu" else 1e-2}
        errors = relative_error(value, loss), relative_error(slope.float(), gradient.float())
        found = dict(zip(limits, errors, strict=True))
        for name, error in found.items():
            assert error < limits[name], f"{variant}: {name} {error:.2g}: not timed"
        return found

    # Every row of logits once in forward and once in backward, and the gradient.
    moved = 2 * size_in_bytes(*sets[0]) + size_in_bytes(gradient) + size_in_bytes(loss)
    return Problem(
        group=f"logit_distillation_loss {device} {size}",
        device=device,
        make=lambda variant: [make_variant(variant, data) for data in sets],
        check=check,
        bytes=moved,
        info={"images": images},
    )


@pytest.mark.parametrize(
    ("device", "variant"),
    [(d, v) for d in DEVICES for v in ("eager", "compile", *usable(d))],
    ids=lambda v: v,
)
@pytest.mark.parametrize("size", SIZES)
def bench_logit_distillation_loss(race: Any, size: str, device: str, variant: str) -> None:
    race(lambda: problem(size, device))
