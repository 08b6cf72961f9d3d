"""VAR's block-causal attention in teacher forcing: one call a scale, which needs no mask and is
what ``LowerScales`` does, against one call with a dense mask, against FlexAttention and against
``block_causal_attention``, which on a CPU is its definition; on a GPU by Triton too.

pytest bench/bench_attention.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cases import size_in_bytes
from dd2_fast.models.var.attention import LowerScales
from dd2_fast.models.var.scales import Scales
from dd2_fast.models.var.tokenizer import PATCH_NUMS
from dd2_fast.ops import block_causal_attention
from measure import DEVICES, Call, Problem, input_sets

# (sides of the scales, images, heads); VAR-d16's heads are 64 wide.
SIZES = {
    "tiny": ((1, 2, 3), 1, 2),
    "var_d16": (PATCH_NUMS, 1, 16),
    "var_d16_batch": (PATCH_NUMS, 8, 16),
}
WIDTH = 64


def make_variant(
    name: str, scales: Scales, q: Tensor, k: Tensor, v: Tensor
) -> Callable[[], Tensor]:
    if name == "scales":
        attend = LowerScales(scales.slices)
        return lambda: attend(q, k, v, WIDTH**-0.5)
    if name in ("operator", "triton"):
        qkv = torch.stack((q, k, v)).permute(1, 3, 0, 2, 4).contiguous()
        ends, backend = [own.stop for own in scales.slices], None if name == "operator" else name

        def mixed() -> Tensor:
            out = block_causal_attention(qkv, ends, backend=backend)
            return out.unflatten(2, (-1, WIDTH)).transpose(1, 2)

        return mixed
    level = torch.cat([torch.full((s.stop - s.start,), i) for i, s in enumerate(scales.slices)])
    level = level.to(q.device)
    if name == "dense":
        mask = level[:, None] >= level
        return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    blocks = flex.create_block_mask(
        lambda b, h, i, j: level[i] >= level[j], None, None, len(level), len(level), q.device
    )
    compiled = torch.compile(flex.flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=blocks)


def problem(size: str, device: str) -> Problem:
    sides, images, heads = SIZES[size]
    scales, count = Scales.of(sides), sum(side**2 for side in sides)
    images *= 8 if device == "cuda" else 1
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def normal() -> Tensor:
        shape = (images, heads, count, WIDTH)
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    sets = [(normal(), normal(), normal()) for _ in range(input_sets(device))]
    exact = make_variant("dense", scales, *(value.float() for value in sets[0]))()

    def check(variant: str, call: Call) -> dict[str, Any]:
        error = float((call().float() - exact).norm() / exact.norm())
        assert error < (1e-2 if dtype == torch.bfloat16 else 1e-5), f"{variant}: {error:.1e}"
        return {"relative_error": error}

    pairs = sum((own.stop - own.start) * own.stop for own in scales.slices)
    return Problem(
        group=f"attention {device} {size}",
        device=device,
        make=lambda variant: [make_variant(variant, scales, *data) for data in sets],
        check=check,
        bytes=4 / 3 * size_in_bytes(*sets[0]),
        flops=4 * images * heads * pairs * WIDTH,
        info={"images": images},
        seconds=0.3,
    )


@pytest.mark.parametrize(
    ("device", "variant"),
    [
        (device, variant)
        for device in DEVICES
        for variant in ("scales", "dense", "flex", "operator", "triton")
        if device == "cuda" or variant != "triton"
    ],
    ids=lambda v: v,
)
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def bench_attention(race: Any, size: str, device: str, variant: str) -> None:
    race(lambda: problem(size, device))
