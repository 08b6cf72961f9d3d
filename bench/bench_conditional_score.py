"""``conditional_score``: every usable backend against plain eager code and torch.compile.

pytest bench/bench_conditional_score.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import SHAPES, operator_arguments, plain_score, score_inputs, size_in_bytes
from dd2_fast.ops import conditional_score
from measure import DEVICES, Call, Problem, input_sets, relative_error, usable


def make_variant(name: str, data: dict[str, Any]) -> Callable[[], Tensor]:
    if name == "eager":
        return lambda: plain_score(**data)
    if name == "compile":
        compiled = torch.compile(plain_score, dynamic=False)
        return lambda: compiled(**data)
    arguments = operator_arguments(data)
    return lambda: conditional_score(**arguments, prediction="x0", backend=name)


def problem(size: str, device: str) -> Problem:
    shape = SHAPES[size]
    images = shape.images(device)
    sets = [score_inputs(shape, device, images=images, seed=i) for i in range(input_sets(device))]
    wanted = plain_score(**sets[0])

    def check(variant: str, call: Call) -> dict[str, Any]:
        error = relative_error(call(), wanted)
        assert error < 1e-3, f"{variant} is off by {error:.1e}: not timed"
        return {"error": error}

    return Problem(
        group=f"conditional_score {device} {size}",
        device=device,
        make=lambda variant: [make_variant(variant, data) for data in sets],
        check=check,
        bytes=size_in_bytes(*sets[0].values(), wanted),
        # The distances and the weighted sum of the codes that top-k leaves.
        flops=2 * 2 * images * shape.rows * shape.kept * shape.dim,
        info={"images": images},
    )


@pytest.mark.parametrize(
    ("device", "variant"),
    [(d, v) for d in DEVICES for v in ("eager", "compile", *usable(d))],
    ids=lambda v: v,
)
@pytest.mark.parametrize("size", SHAPES)
def bench_conditional_score(race: Any, size: str, device: str, variant: str) -> None:
    race(lambda: problem(size, device))
