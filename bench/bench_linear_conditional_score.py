"""``linear_conditional_score``: every usable backend against the teacher's classifier and
then the score, by plain eager code, by torch.compile and by ``conditional_score``.

pytest bench/bench_linear_conditional_score.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cases import SHAPES, Shape, plain_score, size_in_bytes
from dd2_fast.ops import conditional_score, linear_conditional_score
from measure import DEVICES, Call, Problem, input_sets, relative_error, usable

WIDTHS = {"tiny": 64, "var_filtered": 1024, "llamagen_filtered": 1024}
# Memory is the point: on a CPU more than one image shows it.
IMAGES = {"var_filtered": 2, "llamagen_filtered": 2}


def inputs(shape: Shape, width: int, device: str, images: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator(device).manual_seed(seed)
    rows = shape.rows * images
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    return {
        "hidden": normal(rows, width).to(dtype),
        "weight": (2 * normal(shape.vocabulary, width) / width**0.5).to(dtype),
        "bias": normal(shape.vocabulary).to(dtype),
        "x_t": normal(rows, shape.dim),
        "t": 0.1 + 0.9 * torch.rand(rows, generator=generator, device=device),
        "codebook": normal(shape.vocabulary, shape.dim),
        "uncond_hidden": normal(rows, width).to(dtype),
        "guidance_scale": 1.5,
        "top_k": shape.top_k,
        "top_p": shape.top_p,
    }


def plain(
    hidden: Tensor, weight: Tensor, bias: Tensor, x_t: Tensor, t: Tensor, codebook: Tensor,
    uncond_hidden: Tensor, guidance_scale: float, top_k: int, top_p: float,
) -> Tensor:  # fmt: skip
    logits, uncond = F.linear(hidden, weight, bias), F.linear(uncond_hidden, weight, bias)
    return plain_score(x_t, t, logits, uncond, guidance_scale, codebook, top_k, top_p)


def head_and_score(
    hidden: Tensor, weight: Tensor, bias: Tensor, x_t: Tensor, t: Tensor, codebook: Tensor,
    *, uncond_hidden: Tensor, **options: Any,
) -> Tensor:  # fmt: skip
    logits, uncond = F.linear(hidden, weight, bias), F.linear(uncond_hidden, weight, bias)
    return conditional_score(
        x_t, t, logits, codebook, uncond_logits=uncond, prediction="x0", **options
    )


def make_variant(name: str, data: dict[str, Any]) -> Callable[[], Tensor]:
    if name in ("eager", "compile"):
        function = plain if name == "eager" else torch.compile(plain, dynamic=False)
        return lambda: function(**data)
    if name == "head_then_score":
        return lambda: head_and_score(**data)
    return lambda: linear_conditional_score(**data, prediction="x0", backend=name)


def problem(size: str, device: str) -> Problem:
    shape, width = SHAPES[size], WIDTHS[size]
    images = shape.images(device)
    images = max(images, IMAGES.get(size, 1))
    sets = [inputs(shape, width, device, images, seed=i) for i in range(input_sets(device))]
    wanted = plain(**sets[0])
    # Logits next to a filter's threshold, rounded otherwise, keep or lose a code: bf16 most.
    allowed = 1e-3 if device == "cpu" else 5e-2

    def check(variant: str, call: Call) -> dict[str, Any]:
        error = relative_error(call(), wanted)
        assert error < allowed, f"{variant} is off by {error:.1e}: not timed"
        return {"error": error}

    return Problem(
        group=f"linear_conditional_score {device} {size}",
        device=device,
        make=lambda variant: [make_variant(variant, data) for data in sets],
        check=check,
        bytes=size_in_bytes(*sets[0].values(), wanted),
        # The classifier on both hidden states, distances and weighted sum.
        flops=4 * images * shape.rows * (shape.vocabulary * width + shape.kept * shape.dim),
        info={"images": images},
    )


@pytest.mark.parametrize(
    ("device", "variant"),
    [(d, v) for d in DEVICES for v in ("eager", "compile", "head_then_score", *usable(d))],
    ids=lambda v: v,
)
@pytest.mark.parametrize("size", WIDTHS)
def bench_linear_conditional_score(race: Any, size: str, device: str, variant: str) -> None:
    race(lambda: problem(size, device))
