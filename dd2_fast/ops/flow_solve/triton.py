"""The flow ODE in Triton: one pass filters a row, then a block takes all steps of a token.

A filtered row's kept codes are written side by side once, with their guided logits; the steps then
read nothing else of the row. An unfiltered row's logits are read, and guided, at every step. As
many codes as a block has slots are visited at a time, and every slot keeps softmax sums of its
own, relative to its best code: the block exchanges values only to tell how far a code is, and at
the end of a step. Distances are direct differences: small noise levels lose no digits, and equal
codes tie exactly.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_rows import (
    FLOAT_MAX,
    LOG2E,
    OPTIONS,
    TeacherRows,
    filter_row,
    held_block,
    on_device_of,
    row_block,
    row_layout,
)

_BLOCK = 4096  # values of codes at a time
_KEPT = 2**24  # codes and logits of filtered rows that are held at a time, 8 bytes each
_PART = tl.constexpr(2048)  # logits of a row at a time
_NO_CODE = tl.constexpr(2**31 - 1)


@triton.jit(do_not_specialize=["top_k"])
def keep_codes_fwd_kernel(
    p_count, p_largest, p_code, p_logit,
    p_cond, p_uncond, p_scale, cond_stride, uncond_stride, vocabulary, top_k, top_p,
    NUCLEUS: tl.constexpr, GUIDED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """grid (rows): how many codes a row keeps, none where it is invalid, and its largest logit;
    with p_code and p_logit [rows, V] also the codes, ascending, and their logits. Without them all
    codes count as kept, and nothing may filter."""
    i_r = tl.program_id(0).to(tl.int64)
    scale = tl.load(p_scale + i_r)
    row = (p_cond + i_r * cond_stride, p_uncond + i_r * uncond_stride, scale, 1.0, vocabulary)
    b_held, total = held_block(row, GUIDED, BLOCK, WHOLE)
    threshold, largest = filter_row(row, b_held, total, top_k, top_p, NUCLEUS, GUIDED, BLOCK, WHOLE)
    count = tl.where(threshold == threshold, vocabulary, 0)
    if p_code is not None:
        count = tl.full([], 0, tl.int32)
        p_code += i_r * vocabulary
        p_logit += i_r * vocabulary
        # Read again: positions beside a whole row in registers would spill.
        PART: tl.constexpr = BLOCK if BLOCK < _PART else _PART
        for first in range(0, vocabulary, PART):
            b_x = row_block(row, first, GUIDED, PART)
            m_kept = (b_x >= threshold) & (b_x > float("-inf"))
            o_kept = count + tl.cumsum(m_kept.to(tl.int32), 0) - 1
            tl.store(p_code + o_kept, first + tl.arange(0, PART), mask=m_kept)
            tl.store(p_logit + o_kept, b_x, mask=m_kept)
            count += tl.sum(m_kept.to(tl.int32), 0)
    tl.store(p_count + i_r, count)
    tl.store(p_largest + i_r, largest)


@triton.jit
def _code_block(p_codebook, p_code, first, count, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr):
    """A row's kept codes from ``first`` on, [BLOCK_V], and their vectors; code 0 beyond the last.

    Without p_code these are first, first + 1, ...
    """
    o_v = first + tl.arange(0, BLOCK_V)
    if p_code is not None:
        b_code = tl.load(p_code + o_v, mask=o_v < count, other=0)
    else:
        b_code = tl.where(o_v < count, o_v, 0)
    o_vc = b_code.to(tl.int64)[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    return b_code, tl.load(p_codebook + o_vc)


@triton.jit
def _squared_length(b_x):
    """The same in every lane: squares are exact in float64, so that one which is fused into the
    first addition of two lanes' sum rounds as the other does."""
    b_double = b_x.to(tl.float64)
    return tl.sum(b_double * b_double, 0).to(tl.float32)


@triton.jit
def _posterior_mean(
    row, largest, p_codebook, p_code, b_x, t,
    GUIDED: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x0 [BLOCK_C] of a token ``b_x`` at noise level ``t``; NaN where there is no code.

    Of a token far from all codes the differences would round away what tells the codes apart. In
    place of |x - (1-t) c|^2 it takes ((1-t) r - (1-t) c)·(2 x - (1-t) r - (1-t) c), less by a
    constant, with a code r of the row.
    """
    signal, two_t2 = 1.0 - t, 2.0 * t * t
    b_end, b_ends = _code_block(p_codebook, p_code, 0, row[4], 1, BLOCK_C)
    b_r = signal * tl.sum(b_ends, 0)
    last = tl.maximum(row[4] - 1, 0)
    b_end, b_ends = _code_block(p_codebook, p_code, last, row[4], 1, BLOCK_C)
    b_apart = b_r - signal * tl.sum(b_ends, 0)
    square = _squared_length(b_x - b_r)
    far = (t >= 0.5) & (square > 2.0 * BLOCK_C * two_t2)
    far = far & (square > 16.0 * _squared_length(b_apart))
    b_mirror = 2.0 * b_x - b_r
    exponent = LOG2E / two_t2
    best = tl.full([BLOCK_V], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_V], tl.float32)
    b_mean = tl.zeros([BLOCK_V, BLOCK_C], tl.float32)
    for first in range(0, row[4], BLOCK_V):
        b_l = row_block(row, first, GUIDED, BLOCK_V)
        _, b_c = _code_block(p_codebook, p_code, first, row[4], BLOCK_V, BLOCK_C)
        if far:
            b_clean = signal * b_c
            b_product = (b_r[None, :] - b_clean) * (b_mirror[None, :] - b_clean)
        else:
            b_difference = b_x[None, :] - signal * b_c
            b_product = b_difference * b_difference
        b_s = two_t2 * (b_l - largest) - tl.sum(b_product, 1)
        # Either the sums shrink or the new weight is below 1: one exponential does for both.
        better = b_s > best
        b_factor = tl.exp2(-tl.abs(b_s - best) * exponent)
        shrink = tl.where(better, b_factor, 1.0)
        b_w = tl.where(better, 1.0, tl.where(b_s > float("-inf"), b_factor, 0.0))
        weight = weight * shrink + b_w
        b_mean = b_mean * shrink[:, None] + b_w[:, None] * b_c
        best = tl.where(better, b_s, best)
    share = tl.where(weight > 0.0, tl.exp2((best - tl.max(best, 0)) * exponent), 0.0)
    return tl.sum(b_mean * share[:, None], 0) / tl.sum(weight * share, 0)


@triton.jit
def _nearest_kept(
    row, p_codebook, p_code, b_x,
    GUIDED: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The first of the kept codes nearest to ``b_x``; -1 where none is at a finite distance."""
    nearest = tl.full([BLOCK_V], float("inf"), tl.float32)
    found = tl.full([BLOCK_V], _NO_CODE, tl.int32)
    for first in range(0, row[4], BLOCK_V):
        b_l = row_block(row, first, GUIDED, BLOCK_V)
        b_code, b_c = _code_block(p_codebook, p_code, first, row[4], BLOCK_V, BLOCK_C)
        b_difference = b_x[None, :] - b_c
        b_distance = tl.sum(b_difference * b_difference, 1)
        closer = (b_distance < nearest) & (b_l > float("-inf"))
        found = tl.where(closer, b_code, found)
        nearest = tl.where(closer, b_distance, nearest)
    code = tl.min(tl.where(nearest == tl.min(nearest, 0), found, _NO_CODE), 0)
    return tl.where(code == _NO_CODE, -1, code)


@triton.jit(do_not_specialize=["draws", "steps"])
def flow_solve_fwd_kernel(
    p_out, p_noise, p_codebook, p_norm, p_count, p_largest, p_code,
    p_cond, p_uncond, p_scale, cond_stride, uncond_stride, vocabulary, draws, dim, steps,
    HEUN: tl.constexpr, GUIDED: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """grid (rows * draws). p_codebook: [V, BLOCK_C], padded with zeros; p_norm: its largest
    magnitude. p_code [rows, V]: the codes whose logits a row holds; None: 0, 1, ..."""
    i_t = tl.program_id(0).to(tl.int64)
    i_r = i_t // draws
    o_c = tl.arange(0, BLOCK_C)
    b_x = tl.load(p_noise + i_t * dim + o_c, mask=o_c < dim, other=0.0)
    finite = (tl.max(tl.where(tl.abs(b_x) <= FLOAT_MAX, 0, 1), 0) == 0) & (
        tl.load(p_norm) <= FLOAT_MAX
    )
    count = tl.where(finite, tl.load(p_count + i_r), 0)
    row = (p_cond + i_r * cond_stride, p_uncond + i_r * uncond_stride, tl.load(p_scale + i_r),
           1.0, count)  # fmt: skip
    largest = tl.load(p_largest + i_r)
    if p_code is not None:
        p_code += i_r * vocabulary

    intervals = steps.to(tl.float32)
    step = 1.0 / intervals
    b_at, b_velocity, b_x0 = b_x, tl.zeros_like(b_x), b_x
    for n in range(0, 2 * steps - 1 if HEUN else steps):
        # b_at is b_x, or, in every second evaluation of Heun's, where Euler's step leads.
        level = steps - ((n + 1) // 2 if HEUN else n)
        t = level.to(tl.float32) / intervals
        b_x0 = _posterior_mean(row, largest, p_codebook, p_code, b_at, t, GUIDED, BLOCK_V, BLOCK_C)
        b_slope = (b_at - b_x0) / t
        if HEUN:
            corrects = n % 2 == 1
            b_x = tl.where(corrects, b_x - 0.5 * step * (b_velocity + b_slope), b_x)
            b_at = tl.where(corrects, b_x, b_x - step * b_slope)
            b_velocity = b_slope
        else:
            b_at = b_at - step * b_slope
    code = _nearest_kept(row, p_codebook, p_code, b_x0, GUIDED, BLOCK_V, BLOCK_C)
    tl.store(p_out + i_t, code.to(tl.int64))


def _keep_codes(teacher: TeacherRows) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """``p_count, p_largest, p_code, p_logit`` of rows; without the last two where nothing filters,
    and all codes are kept."""
    largest = torch.empty_like(teacher.scale)
    count = torch.empty_like(largest, dtype=torch.int32)
    code = logits = None
    if teacher.filtered:
        code = count.new_empty(teacher.rows, teacher.vocabulary)
        logits = largest.new_empty(teacher.rows, teacher.vocabulary)
    keep_codes_fwd_kernel[(teacher.rows,)](
        count, largest, code, logits, *teacher.arguments, teacher.top_k, teacher.top_p,
        NUCLEUS=teacher.top_p < 1, GUIDED=teacher.guided, **row_layout(teacher.vocabulary),
        **OPTIONS,
    )  # fmt: skip
    return count, largest, code, logits


def _solve(
    out: Tensor, noise: Tensor, teacher: TeacherRows, codebook: Tensor, norm: Tensor, steps: int,
    solver: str,
) -> None:  # fmt: skip
    """Fills ``out [R, M]``; ``codebook`` is padded, ``norm`` its largest magnitude."""
    (_, draws, dim), block = noise.shape, codebook.shape[1]
    count, largest, code, logits = _keep_codes(teacher)
    if logits is not None:
        # What the filters keep is a row of guided logits itself.
        teacher = TeacherRows(logits, None, teacher.scale, 0, 1.0)
    flow_solve_fwd_kernel[(teacher.rows * draws,)](
        out, noise, codebook, norm, count, largest, code, *teacher.arguments, draws, dim, steps,
        HEUN=solver == "heun", GUIDED=teacher.guided,
        BLOCK_V=max(1, _BLOCK // block), BLOCK_C=block, num_warps=8, **OPTIONS,
    )  # fmt: skip


def flow_solve(
    noise: Tensor,
    logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    codebook: Tensor,
    steps: int,
    solver: str,
    top_k: int,
    top_p: float,
) -> Tensor:
    """Codes ``[R, M]``; arguments as in :mod:`.reference`."""
    out = torch.empty(noise.shape[:2], dtype=torch.int64, device=noise.device)
    if out.numel() == 0:
        return out
    vocabulary, dim = codebook.shape
    block = max(4, triton.next_power_of_2(dim))  # whole vectors of 16 bytes
    with on_device_of(noise):
        padded = torch.nn.functional.pad(codebook, (0, block - dim)).contiguous()
        norm = torch.linalg.vector_norm(codebook, torch.inf)
        rows = max(1, _KEPT // vocabulary)
        for first in range(0, len(noise), rows):
            part = slice(first, first + rows)
            uncond = None if uncond_logits is None else uncond_logits[part]
            teacher = TeacherRows(logits[part], uncond, guidance_scale[part], top_k, top_p)
            _solve(out[part], noise[part].contiguous(), teacher, padded, norm, steps, solver)
    return out
