"""``image_normal``, the noise of images: every backend that can run here against one
``torch.Generator`` an image, the usual way to numbers that do not depend on the batch.

pytest bench/bench_image_normal.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import SHAPES
from dd2_fast.ops import philox  # noqa: F401  (defines the operator)
from measure import DEVICES, Call, Problem, usable

SIZES = {"tiny": 1, "var": 64, "llamagen": 64}  # images


def by_generators(indices: Tensor, shape: tuple[int, int]) -> Tensor:
    device = indices.device
    generators = (torch.Generator(device).manual_seed(i) for i in indices.tolist())
    return torch.stack([torch.randn(shape, generator=g, device=device) for g in generators])


def make_variant(name: str, indices: Tensor, shape: tuple[int, int]) -> Callable[[], Tensor]:
    if name == "eager":
        return lambda: by_generators(indices, shape)
    operator = torch.ops.dd2_fast.image_normal.default
    return lambda: operator(None, 0, indices, shape, 0, name)


def problem(size: str, device: str) -> Problem:
    shape = (SHAPES[size].rows, SHAPES[size].dim)
    indices = torch.arange(SIZES[size], device=device)
    count = indices.numel() * shape[0] * shape[1]
    wanted = make_variant("torch", indices, shape)()

    def check(variant: str, call: Call) -> dict[str, Any]:
        drawn = call()
        if variant == "eager":
            bound = 6 / count**0.5
            assert abs(float(drawn.mean())) < bound and abs(float(drawn.std()) - 1) < bound
            return {}
        error = float((drawn - wanted).abs().max())
        assert error < 1e-6, f"{variant} is off by {error:.1e}: not timed"
        return {"error": error}

    return Problem(
        group=f"image_normal {device} {size}",
        device=device,
        make=lambda variant: [make_variant(variant, indices, shape)],
        check=check,
        bytes=4 * count,
        info={"images": indices.numel()},
    )


@pytest.mark.parametrize(
    ("device", "variant"),
    [(d, v) for d in DEVICES for v in ("eager", *usable(d))],
    ids=lambda v: v,
)
@pytest.mark.parametrize("size", SIZES)
def bench_image_normal(race: Any, size: str, device: str, variant: str) -> None:
    race(lambda: problem(size, device))
