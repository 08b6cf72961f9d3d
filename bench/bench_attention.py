"""VAR's block-causal attention in teacher forcing: one call a scale, which needs no mask and is
what ``LowerScales`` does, against one call with a dense mask, against FlexAttention and against
``block_causal_attention``, which on a CPU is its definition and on a GPU by Triton too; and with
gradients, as in training, the calls against FlexAttention, of which torch has no derivative on a
CPU.

pytest bench/bench_attention.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cases import size_in_bytes
from dd2_fast.models.var.attention import ByFlex, LowerScales
from dd2_fast.models.var.scales import Scales
from dd2_fast.models.var.tokenizer import PATCH_NUMS
from dd2_fast.ops import block_causal_attention
from measure import DEVICES, Call, Problem, input_sets, relative_error

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


def inputs(size: str, device: str, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Sets of queries, keys and values."""
    sides, images, heads = SIZES[size]
    generator = torch.Generator(device).manual_seed(0)
    images *= 8 if device == "cuda" else 1

    def normal() -> Tensor:
        shape = (images, heads, sum(side**2 for side in sides), WIDTH)
        return torch.randn(shape, generator=generator, device=device).to(dtype_on(device))

    return [(normal(), normal(), normal()) for _ in range(count)]


def dtype_on(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def close(variant: str, results: Sequence[Tensor], exact: Sequence[Tensor]) -> dict[str, Any]:
    low = results[0].dtype == torch.bfloat16
    error = max(relative_error(r.float(), w) for r, w in zip(results, exact, strict=True))
    assert error < (1e-2 if low else 1e-5), f"{variant}: {error:.1e}"
    return {"relative_error": error}


def flops_of(scales: Scales, like: Tensor) -> int:
    """Of the forward pass."""
    pairs = sum((own.stop - own.start) * own.stop for own in scales.slices)
    return 4 * like.shape[0] * like.shape[1] * pairs * WIDTH


def problem(size: str, device: str) -> Problem:
    scales = Scales.of(SIZES[size][0])
    sets = inputs(size, device, input_sets(device))
    exact = make_variant("dense", scales, *(value.float() for value in sets[0]))()
    return Problem(
        group=f"attention {device} {size}",
        device=device,
        make=lambda variant: [make_variant(variant, scales, *data) for data in sets],
        check=lambda variant, call: close(variant, [call()], [exact]),
        bytes=4 / 3 * size_in_bytes(*sets[0]),
        flops=flops_of(scales, sets[0][0]),
        info={"images": len(sets[0][0])},
        seconds=0.3,
    )


def training_problem(size: str, device: str) -> Problem:
    """Result and gradients, by what networks in training attend by."""
    scales = Scales.of(SIZES[size][0])
    *sets, (weight, _, _) = inputs(size, device, input_sets(device) + 1)

    def both(attend: Any, data: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
        leaves = [value.detach().requires_grad_() for value in data]
        out = attend(*leaves, WIDTH**-0.5)
        return [out, *torch.autograd.grad(out, leaves, weight)]

    def make(variant: str) -> list[Call]:
        ends = [own.stop for own in scales.slices]
        by_flex = variant == "flex"
        attend = ByFlex(ends, False, weight.device) if by_flex else LowerScales(scales.slices)
        return [lambda data=data: both(attend, data, weight) for data in sets]

    data = [value.float() for value in sets[0]]
    exact = both(LowerScales(scales.slices), data, weight.float())
    return Problem(
        group=f"attention {device} {size} training",
        device=device,
        make=make,
        check=lambda variant, call: close(variant, call(), exact),
        bytes=8 / 3 * size_in_bytes(*sets[0]),
        flops=3.5 * flops_of(scales, weight),  # the backward pass makes the scores again
        info={"images": len(weight)},
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


@pytest.mark.parametrize(
    ("device", "variant"),
    [(d, v) for d in DEVICES for v in ("scales", *(("flex",) if d == "cuda" else ()))],
    ids=lambda v: v,
)
@pytest.mark.parametrize("size", SIZES)
def bench_attention_training(race: Any, size: str, device: str, variant: str) -> None:
    race(lambda: training_problem(size, device))
