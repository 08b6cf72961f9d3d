"""Block-causal attention in Triton: an online softmax over tiles of keys, on tensor cores.

A query sees the keys before its limit. Tiles of keys below every limit of a tile of queries take no
mask, those above every limit are not read. Unit queries and keys are factors of the scores,

    s_ij = scale gain (q_i·k_j) / (|q_i| |k_j|)

so that nothing is rounded for them. What a strict block sees of itself, each query its own key, is
what the softmax starts from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_rows import LOG2E, OPTIONS, on_device_of, unit_stride

_SHORTEST2 = tl.constexpr(1e-24)


@triton.jit
def _limits(o_m, count, ENDS: tl.constexpr, STRICT: tl.constexpr):
    """How many keys each query sees from the first on; ENDS without the last one."""
    if ENDS is None:
        limit = tl.minimum(o_m + 1, count)
    elif STRICT:
        limit = o_m * 0
        for i in tl.static_range(len(ENDS)):
            limit = tl.where(o_m >= ENDS[i], ENDS[i], limit)
    else:
        limit = o_m * 0 + count
        for i in tl.static_range(len(ENDS)):
            limit = tl.where(o_m < ENDS[len(ENDS) - 1 - i], ENDS[len(ENDS) - 1 - i], limit)
    return limit


@triton.jit
def _rows(
    p_x, stride, first, count, size,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """[BLOCK, BLOCK_D] of tokens first, first + 1, ...; if MASKED, zero beyond the last token and
    the last channel."""
    o_n, o_d = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_D)[None, :]
    p_rows = p_x + tl.cast(first, tl.int64) * stride + o_n * stride + o_d
    if MASKED:
        return tl.load(p_rows, mask=(o_n < count - first) & (o_d < size), other=0.0)
    return tl.load(p_rows)


@triton.jit
def _pairs(b_x):
    """The first and the second of neighbouring channels, float32 [N, D / 2] each."""
    return tl.split(tl.reshape(b_x.to(tl.float32), [b_x.shape[0], b_x.shape[1] // 2, 2]))


@triton.jit
def _turned_rows(
    p_x, p_table, stride, first, count, size,
    ROTARY: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Queries or keys of tokens first, first + 1, ..., turned if ROTARY."""
    b_x = _rows(p_x, stride, first, count, size, BLOCK, BLOCK_D, MASKED)
    if ROTARY:
        b_table = _rows(p_table, size, first, count, size, BLOCK, BLOCK_D, MASKED)
        b_cos, b_sin = _pairs(b_table)
        b_a, b_b = _pairs(b_x)
        b_turned = tl.join(b_a * b_cos - b_b * b_sin, b_b * b_cos + b_a * b_sin)
        b_x = tl.reshape(b_turned, b_x.shape).to(b_x.dtype)
    return b_x


@triton.jit
def _inverse_length(b_x):
    b_wide = b_x.to(tl.float32)
    return tl.rsqrt(tl.maximum(tl.sum(b_wide * b_wide, 1), _SHORTEST2))


@triton.jit
def _attend(
    state, b_q, row_scale, key_scale, limit, p_k, p_v, p_table, first, last, stride, count,
    SIZE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UNIT: tl.constexpr,
    ROTARY: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The state after the keys first, ..., last - 1; if MASKED, those below each query's limit."""
    b_max, b_sum, b_out = state
    PADDED: tl.constexpr = MASKED or BLOCK_D != SIZE
    for start in range(first, last, BLOCK_N):
        b_k = _turned_rows(
            p_k, p_table, stride, start, count, SIZE, ROTARY, BLOCK_N, BLOCK_D, PADDED
        )
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="tf32x3")
        if UNIT:
            b_s *= (key_scale * _inverse_length(b_k))[None, :]
        if MASKED:
            o_n = start + tl.arange(0, BLOCK_N)
            b_s = tl.where(o_n[None, :] < limit[:, None], b_s, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1) * row_scale)
        b_p = tl.exp2(b_s * row_scale[:, None] - b_new[:, None])
        b_decay = tl.exp2(b_max - b_new)
        b_sum = b_sum * b_decay + tl.sum(b_p, 1)
        b_v = _rows(p_v, stride, start, count, SIZE, BLOCK_N, BLOCK_D, PADDED)
        b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out * b_decay[:, None], input_precision="tf32x3")
        b_max = b_new
    return b_max, b_sum, b_out


@triton.jit(do_not_specialize=["count", "tiles"])
def block_causal_attention_fwd_kernel(
    p_out, p_qkv, p_gain, p_table, image_stride, token_stride, part_stride, head_stride, count,
    tiles, heads, scale, ENDS: tl.constexpr, STRICT: tl.constexpr, SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """grid (tiles * heads * images), of BLOCK_M queries each; of a head, the longest come first."""
    UNIT: tl.constexpr = p_gain is not None
    ROTARY: tl.constexpr = p_table is not None
    i = tl.program_id(0)
    first = (tiles - 1 - i % tiles) * BLOCK_M
    i_h = (i // tiles) % heads
    i_b = (i // tiles) // heads
    p_q = p_qkv + i_b.to(tl.int64) * image_stride + i_h * head_stride
    p_k = p_q + part_stride
    p_v = p_k + part_stride
    o_m = first + tl.arange(0, BLOCK_M)
    limit = _limits(o_m, count, ENDS, STRICT)
    b_q = _turned_rows(
        p_q, p_table, token_stride, first, count, SIZE, ROTARY, BLOCK_M, BLOCK_D, True
    )
    row_scale = tl.full([BLOCK_M], 1.0, tl.float32) * (scale * LOG2E)
    key_scale = 1.0
    if UNIT:
        row_scale *= _inverse_length(b_q)
        key_scale = tl.load(p_gain + i_h).to(tl.float32)
    if STRICT:
        b_k = _turned_rows(
            p_k, p_table, token_stride, first, count, SIZE, ROTARY, BLOCK_M, BLOCK_D, True
        )
        b_max = tl.sum(b_q.to(tl.float32) * b_k.to(tl.float32), 1) * row_scale
        if UNIT:
            b_max *= key_scale * _inverse_length(b_k)
        b_sum = tl.full([BLOCK_M], 1.0, tl.float32)
        b_v = _rows(p_v, token_stride, first, count, SIZE, BLOCK_M, BLOCK_D, True)
        b_out = b_v.to(tl.float32)
    else:
        b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        b_sum = tl.zeros([BLOCK_M], tl.float32)
        b_out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    whole = tl.min(limit, 0) // BLOCK_N * BLOCK_N
    state = _attend(
        (b_max, b_sum, b_out), b_q, row_scale, key_scale, limit, p_k, p_v, p_table, 0, whole,
        token_stride, count, SIZE, BLOCK_N, BLOCK_D, UNIT, ROTARY, False,
    )  # fmt: skip
    b_max, b_sum, b_out = _attend(
        state, b_q, row_scale, key_scale, limit, p_k, p_v, p_table, whole, tl.max(limit, 0),
        token_stride, count, SIZE, BLOCK_N, BLOCK_D, UNIT, ROTARY, True,
    )  # fmt: skip
    width = heads * SIZE
    o_d = tl.arange(0, BLOCK_D)
    p_out += (i_b.to(tl.int64) * count + first) * width + i_h * SIZE
    m_out = (o_m < count)[:, None] & (o_d < SIZE)[None, :]
    b_out = (b_out / b_sum[:, None]).to(p_out.dtype.element_ty)
    tl.store(p_out + tl.arange(0, BLOCK_M)[:, None] * width + o_d[None, :], b_out, mask=m_out)


def block_causal_attention(
    qkv: Tensor,
    ends: Sequence[int],
    gain: Tensor | None,
    rotary: Tensor | None,
    strict: bool,
    scale: float,
) -> Tensor:
    """Mixed values; arguments as in :mod:`.reference`."""
    images, count, _, heads, size = qkv.shape
    out = qkv.new_empty(images, count, heads * size)
    if out.numel() == 0:
        return out
    qkv = unit_stride(qkv)
    rotary = None if rotary is None else rotary.to(torch.float32).contiguous()
    gain = None if gain is None else gain.contiguous()
    padded = max(16, triton.next_power_of_2(size))
    # Larger tiles of long rows would spill registers.
    row = padded * qkv.element_size()
    block = 64 if row <= 128 else 32 if row <= 512 else 16
    tiles = triton.cdiv(count, block)
    with on_device_of(qkv):
        block_causal_attention_fwd_kernel[(tiles * heads * images,)](
            out, qkv, gain, rotary, *qkv.stride()[:4], count, tiles, heads, scale,
            SIZE=size, ENDS=tuple(ends[:-1]) if ends else None, STRICT=strict and bool(ends),
            BLOCK_M=block, BLOCK_N=block, BLOCK_D=padded,
            num_warps=4 if row <= 256 else 8, num_stages=3 if row <= 512 else 1, **OPTIONS,
        )  # fmt: skip
    return out
