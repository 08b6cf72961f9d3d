"""``csd_loss``, forward and backward: every backend that can run here against plain eager autograd
and torch.compile.

pytest bench/bench_csd_loss.py --benchmark-only
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from dd2_fast.ops import csd_loss


def _neighbour(name: str) -> ModuleType:
    """A file of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


score = _neighbour("bench_conditional_score")


def plain_loss(x: Tensor, x_t: Tensor, fake_x0: Tensor, **teacher: Any) -> Tensor:
    """What one writes without this package: the fastest plain torch code we know, with autograd."""
    teacher_x0 = score.plain_score(x_t, **teacher)
    weight = 1 / (x - teacher_x0).detach().abs().mean(-1).clamp(min=1e-5)
    difference = teacher_x0 - fake_x0
    return weight * (difference * (teacher_x0 - x - difference)).sum(-1)


def inputs(name: str, device: str) -> dict[str, Any]:
    """Those of the conditional score, and tokens and guesses of a generator and its guidance."""
    data = score.inputs(score.SHAPES[name], device)
    x_t = data["x_t"]
    data["x"] = x_t + 0.3 * torch.randn_like(x_t)
    data["fake_x0"] = x_t + 0.3 * torch.randn_like(x_t)
    for key in ("x", "x_t", "fake_x0"):
        data[key].requires_grad_()
    return data


def make_variant(name: str, data: dict[str, Any]) -> Callable[[], Tensor]:
    """The loss of a variant, its backward still to run."""
    if name in ("eager", "compile"):
        function = plain_loss if name == "eager" else torch.compile(plain_loss, dynamic=False)
        return lambda: function(**data)
    renamed = {"uncond": "uncond_logits", "scale": "guidance_scale"}
    arguments = {renamed.get(key, key): value for key, value in data.items()}
    return lambda: csd_loss(**arguments, backend=name)


@pytest.mark.parametrize(
    ("device", "variant"),
    [(d, v) for d in score.DEVICES for v in score.VARIANTS[d]],
    ids=lambda v: v,
)
@pytest.mark.parametrize("name", score.SHAPES)
def bench_csd_loss(
    benchmark: Any, copy_bandwidth: Callable[[str], float], name: str, device: str, variant: str
) -> None:
    data = inputs(name, device)
    function = make_variant(variant, data)
    variables = [data[key] for key in ("x", "x_t", "fake_x0")]

    def step(function: Callable[[], Tensor]) -> list[Tensor]:
        loss = function()
        return [loss.detach(), *torch.autograd.grad(loss.sum(), variables)]

    computed, wanted = step(function), step(lambda: plain_loss(**data))
    errors = [score.relative_error(a, b) for a, b in zip(computed, wanted, strict=True)]
    assert max(errors) < 1e-2, f"{variant} is off by {errors}: not timed"

    def timed() -> None:
        step(function)
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"csd_loss {device} {name}"
    tensors = [v for v in data.values() if isinstance(v, Tensor)]
    counted = sum(v.numel() * v.element_size() for v in [*tensors, *wanted])
    benchmark.extra_info.update(
        variant=variant, bytes=counted, limit_seconds=counted / copy_bandwidth(device),
        error=max(errors),
    )  # fmt: skip
    benchmark.pedantic(timed, warmup_rounds=2, rounds=9)
