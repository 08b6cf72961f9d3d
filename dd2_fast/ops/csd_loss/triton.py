"""The CSD loss in Triton: the conditional score's D and J (F - x), then an epilogue over tokens."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..conditional_score.triton import solve
from ..triton_rows import OPTIONS, on_device_of
from .reference import SMALLEST_DISTANCE

_SMALLEST_DISTANCE = tl.constexpr(SMALLEST_DISTANCE)
_BLOCK = 2048  # values at a time, of whole tokens
# A product fused into the first addition of a sum that lanes form by exchange would be rounded in
# one of two lanes: the loss, which both have, could differ in its last bit.
_OPTIONS = {**OPTIONS, "enable_fp_fusion": False}


@triton.jit(do_not_specialize=["tokens", "draws"])
def csd_loss_fwd_kernel(
    p_loss, p_grad_x, p_grad_fake, p_grad_x_t, p_x, p_fake, p_weight, p_x0,
    tokens, draws, dim, alpha, weight_power,
    ALONG: tl.constexpr, DMD: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """grid (ceil(tokens / BLOCK_T)). p_grad_x_t holds J (F - x) where ALONG; what is None is left
    out, and a weight that is None is mean|x - D| ** -weight_power."""
    o_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_c = tl.arange(0, BLOCK_C)
    m_t = o_t < tokens
    m_tc = m_t[:, None] & (o_c < dim)
    o_tc = o_t[:, None] * dim + o_c
    b_x = tl.load(p_x + (o_t // draws)[:, None] * dim + o_c, mask=m_tc, other=0.0)
    b_x0 = tl.load(p_x0 + o_tc, mask=m_tc, other=0.0)
    b_difference = b_x0 - tl.load(p_fake + o_tc, mask=m_tc, other=0.0)
    b_other = -b_x if DMD else b_x0 - b_x - alpha * b_difference
    if p_weight is not None:
        weight = tl.load(p_weight + o_t, mask=m_t, other=0.0)
    else:
        distance = tl.sum(tl.abs(b_x - b_x0), 1) / dim
        distance = tl.where(distance < _SMALLEST_DISTANCE, _SMALLEST_DISTANCE, distance)
        weight = tl.exp2(-weight_power * tl.log2(distance))
    tl.store(p_loss + o_t, weight * tl.sum(b_difference * b_other, 1), mask=m_t)
    weight = weight[:, None]
    tl.store(p_grad_x + o_tc, -weight * b_difference, mask=m_tc)
    if p_grad_fake is not None:
        tl.store(p_grad_fake + o_tc, weight * (alpha * b_difference - b_other), mask=m_tc)
    if p_grad_x_t is not None:
        if ALONG:
            b_along = tl.load(p_grad_x_t + o_tc, mask=m_tc, other=0.0)
        else:
            b_along = b_other + (1.0 - alpha) * b_difference
        tl.store(p_grad_x_t + o_tc, weight * b_along, mask=m_tc)


def csd_loss(
    x: Tensor,
    fake_x0: Tensor,
    weight: Tensor | None,
    weight_power: float,
    objective: str,
    alpha: float,
    wants_x_t: bool,
    x_t: Tensor,
    *posterior: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and gradients; arguments as in :mod:`.reference`."""
    x, fake_x0 = x.contiguous(), fake_x0.contiguous()
    rows, draws, dim = x_t.shape
    sid = objective == "sid"
    loss = x_t.new_empty(rows, draws)
    x0, grad_x = torch.empty_like(fake_x0), torch.empty_like(fake_x0)
    grad_fake = torch.empty_like(fake_x0) if sid else x_t.new_empty(0)
    grad_x_t = torch.empty_like(fake_x0) if sid and wants_x_t else x_t.new_empty(0)
    if x_t.numel() == 0:
        return loss, grad_x, grad_fake, grad_x_t
    along = sid and wants_x_t and alpha == 1
    direction = fake_x0 - x[:, None] if along else None
    solve(x0, grad_x_t if along else None, direction, x_t, *posterior)
    block = triton.next_power_of_2(dim)
    tokens = max(1, _BLOCK // block)
    with on_device_of(x_t):
        csd_loss_fwd_kernel[(triton.cdiv(rows * draws, tokens),)](
            loss, grad_x, grad_fake if sid else None, grad_x_t if sid and wants_x_t else None,
            x, fake_x0, None if weight is None else weight.contiguous(), x0,
            rows * draws, draws, dim, alpha, weight_power,
            ALONG=along, DMD=not sid, BLOCK_T=tokens, BLOCK_C=block,
            **_OPTIONS,
        )  # fmt: skip
    return loss, grad_x, grad_fake, grad_x_t
