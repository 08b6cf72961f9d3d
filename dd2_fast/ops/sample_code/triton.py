"""The draw in Triton: one block a row, filtered and then inverted in code order.

The CDF is not written: sums of 128 codes find the part of the row that holds the target, and the
running sums of that part the code.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_rows import (
    LOG2E,
    OPTIONS,
    TeacherRows,
    block_at,
    filter_row,
    held_block,
    on_device_of,
    row_layout,
)
from .reference import STREAM

_STREAM = tl.constexpr(STREAM)
_PART = tl.constexpr(128)  # codes


@triton.jit
def _row_uniform(seed, i_r):
    """As :func:`dd2_fast.ops.philox.row_uniform`."""
    low, high = (i_r & 0xFFFFFFFF).to(tl.uint32), (i_r >> 32).to(tl.uint32)
    first, second, _, _ = tl.philox(seed, low * 0, low, high, low * 0 + _STREAM)
    bits = (first.to(tl.int64) << 20) | (second.to(tl.int64) >> 12)
    return (bits.to(tl.float64) + 0.5) * 2.0**-52


@triton.jit
def _masses(b_x, threshold, largest, BLOCK: tl.constexpr):
    """``exp(l - largest)`` of the kept codes in parts: [BLOCK / 128, 128]."""
    kept = (b_x >= threshold) & (b_x > float("-inf"))
    b_mass = tl.where(kept, tl.exp2((b_x - largest) * LOG2E), 0.0)
    return tl.reshape(b_mass, [BLOCK // _PART, _PART])


@triton.jit
def _first_beyond(b_mass, below, target):
    """The first index whose running sum from ``below`` exceeds the target, and the sum before it.

    Where rounding lets none exceed it, the last index with mass.
    """
    o_i = tl.arange(0, b_mass.shape[0])
    b_running = tl.cumsum(b_mass, 0) + below
    last = tl.max(tl.where(b_mass > 0.0, o_i, 0), 0)
    found = tl.minimum(tl.sum((b_running <= target).to(tl.int32), 0), last)
    return found, tl.max(tl.where(o_i < found, b_running, below), 0)


@triton.jit(do_not_specialize=["top_k", "seed_stride"])
def sample_code_fwd_kernel(
    p_out, p_seed, seed_stride, p_index, p_cond, p_uncond, p_scale, cond_stride, uncond_stride,
    vocabulary, top_k, top_p, inverse_temperature,
    NUCLEUS: tl.constexpr, GUIDED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """grid (rows); p_index None: the rows count themselves."""
    i_r = tl.program_id(0).to(tl.int64)
    p_cond += i_r * cond_stride
    p_uncond += i_r * uncond_stride
    row = (p_cond, p_uncond, tl.load(p_scale + i_r), inverse_temperature, vocabulary)
    b_held, total = held_block(row, GUIDED, BLOCK, WHOLE)
    threshold, largest = filter_row(row, b_held, total, top_k, top_p, NUCLEUS, GUIDED, BLOCK, WHOLE)

    total = tl.zeros([], tl.float64)
    for first in range(0, BLOCK if WHOLE else vocabulary, BLOCK):
        b_x = block_at(row, b_held, first, GUIDED, BLOCK, WHOLE)
        total += tl.sum(tl.sum(_masses(b_x, threshold, largest, BLOCK).to(tl.float64), 1), 0)
    counter = i_r if p_index is None else tl.load(p_index + i_r)
    target = _row_uniform(tl.load(p_seed + i_r * seed_stride), counter) * total
    code = tl.full([], -1, tl.int32)
    below = tl.zeros([], tl.float64)
    for first in range(0, BLOCK if WHOLE else vocabulary, BLOCK):
        b_x = block_at(row, b_held, first, GUIDED, BLOCK, WHOLE)
        b_mass = _masses(b_x, threshold, largest, BLOCK)
        b_sums = tl.sum(b_mass.to(tl.float64), 1)
        part, before = _first_beyond(b_sums, below, target)
        o_part = tl.arange(0, BLOCK // _PART)[:, None]
        b_part = tl.sum(tl.where(o_part == part, b_mass, 0.0), 0).to(tl.float64)
        found, _ = _first_beyond(b_part, before, target)
        weight = tl.sum(b_sums, 0)
        code = tl.where((weight > 0.0) & (below <= target), first + part * _PART + found, code)
        below += weight
    tl.store(p_out + i_r, code.to(tl.int64))


def sample_code(
    logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    seed: Tensor,
    index: Tensor | None,
    top_k: int,
    top_p: float,
    temperature: float,
) -> Tensor:
    """Codes; arguments as in :mod:`.reference`."""
    out = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    if out.numel() == 0:
        return out
    index = None if index is None else index.contiguous()
    with on_device_of(logits):
        teacher = TeacherRows(logits, uncond_logits, guidance_scale, top_k, top_p)
        sample_code_fwd_kernel[(teacher.rows,)](
            out, seed.contiguous(), seed.ndim, index, *teacher.arguments, teacher.top_k, top_p,
            1 / temperature, NUCLEUS=top_p < 1, GUIDED=teacher.guided,
            **row_layout(teacher.vocabulary), **OPTIONS,
        )  # fmt: skip
    return out
