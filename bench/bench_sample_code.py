"""``sample_code``: every backend that can run here against the sort-based code of today's samplers,
eager and under torch.compile.

pytest bench/bench_sample_code.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import SHAPES, filtered, score_inputs, size_in_bytes
from dd2_fast.ops import sample_code
from measure import DEVICES, Call, Problem, input_sets, usable

SIZES = ("tiny", "var", "var_filtered", "llamagen_filtered")


def plain_sample(*arguments: Any) -> Tensor:
    """What VAR and LlamaGen do: mask by sorting, softmax, multinomial."""
    return torch.multinomial(filtered(*arguments).softmax(-1), 1)[:, 0]


def make_variant(name: str, data: tuple[Any, ...]) -> Callable[[], Tensor]:
    if name == "eager":
        return lambda: plain_sample(*data)
    if name == "compile":
        compiled = torch.compile(plain_sample, dynamic=False)
        return lambda: compiled(*data)
    logits, uncond, scale, top_k, top_p = data
    return lambda: sample_code(
        logits, uncond_logits=uncond, guidance_scale=scale, top_k=top_k, top_p=top_p, backend=name
    )


def problem(size: str, device: str) -> Problem:
    shape = SHAPES[size]
    images = shape.images(device)
    sets = []
    for i in range(input_sets(device)):
        data = score_inputs(shape, device, images=images, seed=i)
        sets.append(tuple(data[key] for key in ("logits", "uncond", "scale", "top_k", "top_p")))
    kept = filtered(*sets[0]) > -torch.inf
    rows = len(kept)

    def check(variant: str, call: Call) -> dict[str, Any]:
        drawn = call()
        # A code at the very edge of top-p may go either way.
        dropped = (~kept.gather(1, drawn[:, None])).sum().item()
        assert dropped <= 1, f"{variant} draws {dropped} codes that the filters drop: not timed"
        if variant in ("eager", "compile"):
            return {}
        differing = (drawn != make_variant("torch", sets[0])()).sum().item()
        assert differing <= 2 + rows // 2500, f"{variant}: {differing} draws differ: not timed"
        return {"differing_draws": differing}

    return Problem(
        group=f"sample_code {device} {size}",
        device=device,
        make=lambda variant: [make_variant(variant, data) for data in sets],
        check=check,
        bytes=size_in_bytes(*sets[0]) + 8 * rows,
        info={"images": images},
    )


@pytest.mark.parametrize(
    ("device", "variant"),
    [(d, v) for d in DEVICES for v in ("eager", "compile", *usable(d))],
    ids=lambda v: v,
)
@pytest.mark.parametrize("size", SIZES)
def bench_sample_code(race: Any, size: str, device: str, variant: str) -> None:
    race(lambda: problem(size, device))
