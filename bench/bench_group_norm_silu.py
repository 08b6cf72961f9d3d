"""``group_norm_silu``: the norms of VAR's and LlamaGen's decoders by every backend that can run
here against eager code, which adds the skip, normalises and takes SiLU, and torch.compile.

pytest bench/bench_group_norm_silu.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cases import size_in_bytes
from dd2_fast.ops import group_norm_silu
from measure import DEVICES, Call, Problem, input_sets, usable

GROUPS, EPS = 32, 1e-6
# (channels, side, whether there is a skip to add)
SIZES = {
    "tiny_skip": (64, 4, True),
    "var_256": (160, 256, False),
    "var_256_skip": (160, 256, True),
    "var_16_skip": (640, 16, True),
    "llamagen_128_skip": (128, 128, True),
}

Maps = tuple[Tensor, Tensor | None, Tensor, Tensor]


def plain_norm(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor) -> Any:
    """As the decoders' modules do."""
    s = x if residual is None else x + residual
    y = F.silu(F.group_norm(s, GROUPS, weight, bias, EPS), inplace=True)
    return y if residual is None else (s, y)


def make_variant(name: str, maps: Maps) -> Callable[[], Any]:
    if name == "eager":
        return lambda: plain_norm(*maps)
    if name == "compile":
        compiled = torch.compile(plain_norm, dynamic=False)
        return lambda: compiled(*maps)
    x, residual, weight, bias = maps
    return lambda: group_norm_silu(
        x, weight, bias, GROUPS, eps=EPS, residual=residual, backend=name
    )


def problem(size: str, device: str) -> Problem:
    channels, side, skip = SIZES[size]
    images = 64 if device == "cuda" else 1
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    def maps() -> Tensor:
        x = normal(images, side, side, channels).to(dtype)
        return x.permute(0, 3, 1, 2)

    sets: list[Maps] = [
        (maps(), maps() if skip else None, normal(channels).to(dtype), normal(channels).to(dtype))
        for _ in range(input_sets(device))
    ]
    exact = plain_norm(*(None if v is None else v[:1].double() for v in sets[0][:2]),
                       *(v.double() for v in sets[0][2:]))  # fmt: skip

    def check(variant: str, call: Call) -> dict[str, Any]:
        found, wanted = (value[-1] if skip else value for value in (call(), exact))
        error = float((found[:1] - wanted).norm() / wanted.norm())
        assert error < (1e-2 if dtype == torch.bfloat16 else 1e-6), f"{variant}: {error:.1e}"
        return {"relative_error": error}

    return Problem(
        group=f"group_norm_silu {device} {size}",
        device=device,
        make=lambda variant: [make_variant(variant, one) for one in sets],
        check=check,
        bytes=2 * size_in_bytes(*sets[0][:2]),
        info={"images": images},
    )


@pytest.mark.parametrize(
    ("device", "variant"),
    [(d, v) for d in DEVICES for v in ("eager", "compile", *usable(d))],
    ids=lambda v: v,
)
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def bench_group_norm_silu(race: Any, size: str, device: str, variant: str) -> None:
    race(lambda: problem(size, device))
