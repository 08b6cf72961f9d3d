"""Group norm in Triton: moments of every channel in parts of an image, gains and shifts of every
channel from those of its group, then these applied. Nothing depends on the order of blocks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_rows import LOG2E, OPTIONS, on_device_of

_PIXELS, _CHANNELS = 64, 32  # of a tile
_PART = 512  # pixels of a program of the moments
_TOGETHER = 1024  # moments of a group


@triton.jit
def _added(p_bias, o_c, m_c):
    """A bias of the channels, zeros where there is none."""
    if p_bias is not None:
        b_added = tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)
    else:
        b_added = tl.zeros(o_c.shape, tl.float32)
    return b_added


@triton.jit
def norm_moments_kernel(
    p_moments, p_sum, p_x, p_residual, p_bias, pixels, channels,
    PART: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """grid (parts, tiles of channels, images): means and squares about them, [B, parts, 2, C]; with
    a residual, the sum."""
    i_p, i_b = tl.program_id(0), tl.program_id(2).to(tl.int64)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    b_added = _added(p_bias, o_c, m_c)
    b_mean, b_square = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    seen = 0.0
    end = tl.minimum(pixels, (i_p + 1) * PART)
    for first in range(i_p * PART, end, BLOCK_P):
        o_p = first + tl.arange(0, BLOCK_P)
        mask = (o_p < end)[:, None] & m_c[None, :]
        o_x = (i_b * pixels + o_p)[:, None] * channels + o_c[None, :]
        b_x = tl.load(p_x + o_x, mask=mask, other=0.0).to(tl.float32) + b_added[None, :]
        if p_residual is not None:
            b_x += tl.load(p_residual + o_x, mask=mask, other=0.0).to(tl.float32)
            b_rounded = b_x.to(p_sum.dtype.element_ty)
            tl.store(p_sum + o_x, b_rounded, mask=mask)
            b_x = b_rounded.to(tl.float32)
        count = tl.minimum(end - first, BLOCK_P) * 1.0
        b_own = tl.sum(tl.where(mask, b_x, 0.0), 0) / count
        b_off = tl.where(mask, b_x - b_own[None, :], 0.0)
        b_step = b_own - b_mean
        share = count / (seen + count)
        b_mean += b_step * share
        b_square += tl.sum(b_off * b_off, 0) + b_step * b_step * (seen * share)
        seen += count
    p_moments += (i_b * tl.num_programs(0) + i_p) * 2 * channels + o_c
    tl.store(p_moments, b_mean, mask=m_c)
    tl.store(p_moments + channels, b_square, mask=m_c)


@triton.jit
def norm_gains_kernel(
    p_gains, p_moments, p_weight, p_bias, pixels, channels, size, parts, eps,
    PART: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """grid (groups, images): gains and shifts of a group's channels, [B, 2, C]."""
    i_g, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    p_group = p_moments + i_b * parts * 2 * channels + i_g * size
    values = 1.0 * pixels * size
    b_total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, parts * size, BLOCK):
        o = first + tl.arange(0, BLOCK)
        part, m = o // size, o < parts * size
        b_count = tl.minimum(pixels - part * PART, PART).to(tl.float32)
        b_mean = tl.load(p_group + part * 2 * channels + o % size, mask=m, other=0.0)
        b_total += tl.where(m, b_mean * b_count, 0.0)
    mean = tl.sum(b_total, 0) / values
    b_total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, parts * size, BLOCK):
        o = first + tl.arange(0, BLOCK)
        part, m = o // size, o < parts * size
        b_count = tl.minimum(pixels - part * PART, PART).to(tl.float32)
        p_own = p_group + part * 2 * channels + o % size
        b_off = tl.load(p_own, mask=m, other=0.0) - mean
        b_square = tl.load(p_own + channels, mask=m, other=0.0)
        b_total += tl.where(m, b_square + b_off * b_off * b_count, 0.0)
    rate = 1.0 / tl.sqrt(tl.sum(b_total, 0) / values + eps)
    p_gains += i_b * 2 * channels
    for first in range(0, size, BLOCK_C):
        o_c = first + tl.arange(0, BLOCK_C)
        m_c = o_c < size
        o_c += i_g * size
        b_gain = tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32) * rate
        b_bias = tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)
        tl.store(p_gains + o_c, b_gain, mask=m_c)
        tl.store(p_gains + channels + o_c, b_bias - mean * b_gain, mask=m_c)


@triton.jit
def group_norm_silu_fwd_kernel(
    p_y, p_x, p_added, p_gains, pixels, channels,
    SILU: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """grid (tiles of pixels, tiles of channels, images)."""
    i_b = tl.program_id(2).to(tl.int64)
    o_p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    mask = (o_p < pixels)[:, None] & m_c[None, :]
    o_x = (i_b * pixels + o_p)[:, None] * channels + o_c[None, :]
    p_gains += i_b * 2 * channels + o_c
    b_gain = tl.load(p_gains, mask=m_c, other=0.0)
    b_shift = tl.load(p_gains + channels, mask=m_c, other=0.0)
    b_shift = tl.fma(_added(p_added, o_c, m_c), b_gain, b_shift)
    b_x = tl.load(p_x + o_x, mask=mask, other=0.0).to(tl.float32)
    b_y = tl.fma(b_x, b_gain[None, :], b_shift[None, :])
    if SILU:
        b_y = b_y / (1.0 + tl.exp2(b_y * -LOG2E))
    tl.store(p_y + o_x, b_y.to(p_y.dtype.element_ty), mask=mask)


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    pre_bias: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Sum and result; arguments as in :mod:`.reference`."""
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    pre_bias = None if pre_bias is None else pre_bias.contiguous()
    y = torch.empty_like(x)
    total = x.new_empty(0) if residual is None else torch.empty_like(x)
    images, pixels, channels = x.shape
    if x.numel() == 0:
        return total, y
    parts, size = triton.cdiv(pixels, _PART), channels // groups
    tiles = triton.cdiv(channels, _CHANNELS)
    moments = x.new_empty(images, parts, 2, channels, dtype=torch.float32)
    gains = x.new_empty(images, 2, channels, dtype=torch.float32)
    tile = {"BLOCK_P": _PIXELS, "BLOCK_C": _CHANNELS}
    with on_device_of(x):
        norm_moments_kernel[(parts, tiles, images)](
            moments, None if residual is None else total, x, residual, pre_bias, pixels, channels,
            PART=_PART, **tile, **OPTIONS,
        )  # fmt: skip
        norm_gains_kernel[(groups, images)](
            gains, moments, weight.contiguous(), bias.contiguous(), pixels, channels, size, parts,
            eps, PART=_PART, BLOCK=_TOGETHER, BLOCK_C=_CHANNELS, **OPTIONS,
        )  # fmt: skip
        group_norm_silu_fwd_kernel[(triton.cdiv(pixels, _PIXELS), tiles, images)](
            y, x if residual is None else total, pre_bias if residual is None else None, gains,
            pixels, channels, SILU=silu, **tile, **OPTIONS,
        )  # fmt: skip
    return total, y
