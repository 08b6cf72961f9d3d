"""The conditional score in Triton: a row filter, then one dense pass over tokens x codes.

    s_j = 2 t^2 (l_j - max l) + 2 (1-t) (x_t·c_j - (1-t) |c_j|^2 / 2)
    w_j ∝ exp((s_j - max s) / (2 t^2))

An online softmax over tiles of codes, its products on tensor cores. Codes are taken less the mean
code m and tokens less (1-t) m, so that a codebook far from zero loses no digits. A float is split
into a sum of two halves, high + low, and high·high + high·low + low·high keeps 22 bits of a
product; everything is scaled by powers of two first, so that neither part leaves the range of a
half.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_rows import LOG2E, OPTIONS, TeacherRows, compute_major, guided_logits, on_device_of

_FLOAT_TINY = tl.constexpr(1.175494351e-38)
_HALF_BITS = tl.constexpr(13)  # vectors are scaled to at most 2^14: a half reaches 2^16


@triton.jit
def _scaling(largest):
    """2^k that brings ``largest`` to [2^13, 2^14), and 2^-k; both normal for any float."""
    bits = largest.to(tl.int32, bitcast=True)
    exponent = tl.minimum(tl.maximum((bits >> 23) & 255, 30), 224)
    factor = ((-exponent + (254 + _HALF_BITS)) << 23).to(tl.float32, bitcast=True)
    inverse = ((exponent - _HALF_BITS) << 23).to(tl.float32, bitcast=True)
    return factor, inverse


@triton.jit
def _split(b_x):
    high = b_x.to(tl.float16)
    return high, (b_x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def _product(b_high, b_low, b_other_high, b_other_low):
    """Matrix product of two split matrices."""
    small = tl.dot(b_high, b_other_low)
    small = tl.dot(b_low, b_other_high, small)
    return tl.dot(b_high, b_other_high, small)


@triton.jit
def _token_block(p_x, m_t, first, dim, p_centre, t, BLOCK_C: tl.constexpr):
    """x [BLOCK_T, BLOCK_C] from dimension ``first`` on, less (1-t) m unless p_centre is None."""
    o_c = first + tl.arange(0, BLOCK_C)
    b_x = tl.load(p_x + o_c, mask=m_t & (o_c < dim), other=0.0)
    if p_centre is not None:
        b_m = tl.load(p_centre + o_c, mask=o_c < dim, other=0.0)[None, :]
        b_x = tl.where(m_t & (o_c < dim), tl.fma(t[:, None], b_m, b_x - b_m), 0.0)
    return b_x


@triton.jit
def _token_scaling(p_x, m_t, dim, p_centre, t, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    b_largest = tl.zeros([BLOCK_T], tl.float32)
    for first in range(0, dim, BLOCK_C):
        b_x = _token_block(p_x, m_t, first, dim, p_centre, t, BLOCK_C)
        b_largest = tl.maximum(b_largest, tl.max(tl.abs(b_x), 1))
    return _scaling(b_largest)


@triton.jit
def _token_split(p_x, m_t, first, dim, p_centre, t, factor, BLOCK_C: tl.constexpr):
    return _split(_token_block(p_x, m_t, first, dim, p_centre, t, BLOCK_C) * factor[:, None])


@triton.jit
def split_codebook_kernel(
    p_high, p_low, p_half_norm, p_inverse, p_codes, p_largest, vocabulary, dim,
    BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """grid (ceil(V / BLOCK_V)): the codes in halves, padded with zeros to PADDED dimensions."""
    o_v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    o_v = o_v.to(tl.int64)
    m_v = (o_v < vocabulary)[:, None]
    factor, inverse = _scaling(tl.load(p_largest))
    b_norm = tl.zeros([BLOCK_V], tl.float32)
    for first in range(0, PADDED, BLOCK_C):
        o_c = first + tl.arange(0, BLOCK_C)
        b_c = tl.load(p_codes + o_v[:, None] * dim + o_c, mask=m_v & (o_c < dim), other=0.0)
        b_norm += tl.sum(b_c * b_c, 1)
        b_high, b_low = _split(b_c * factor)
        o_out = o_v[:, None] * PADDED + o_c
        tl.store(p_high + o_out, b_high, mask=m_v)
        tl.store(p_low + o_out, b_low, mask=m_v)
    tl.store(p_half_norm + o_v, 0.5 * b_norm, mask=o_v < vocabulary)
    tl.store(p_inverse, inverse)


@triton.jit(do_not_specialize=["tokens", "draws"])
def conditional_score_fwd_kernel(
    p_out, p_jacobian, p_x, p_t, p_u, p_high, p_low, p_half_norm, p_inverse, p_centre, p_threshold,
    p_largest, p_cond, p_uncond, p_scale, cond_stride, uncond_stride, vocabulary, tokens, draws,
    dim, GUIDED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """grid (ceil(tokens / BLOCK_T), PADDED / BLOCK_C): x0 and, with p_u, J u of BLOCK_T tokens in
    BLOCK_C dimensions. p_threshold None: unfiltered. p_out or p_jacobian None: not wanted.
    """
    i_c = tl.program_id(1) * BLOCK_C
    o_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    m_t = o_t < tokens
    m_t2 = m_t[:, None]
    i_r = o_t // draws
    scale = tl.load(p_scale + i_r, mask=m_t, other=1.0)[:, None]
    p_cond += (i_r * cond_stride)[:, None]
    p_uncond += (i_r * uncond_stride)[:, None]
    p_x += o_t[:, None] * dim
    code_inverse = tl.load(p_inverse)
    t = tl.load(p_t + o_t, mask=m_t, other=1.0)
    x_factor, x_inverse = _token_scaling(p_x, m_t2, dim, p_centre, t, BLOCK_T, BLOCK_C)
    x_high, x_low = _token_split(p_x, m_t2, i_c, dim, p_centre, t, x_factor, BLOCK_C)

    two_t2 = tl.maximum(2.0 * t * t, _FLOAT_TINY)
    exponent = LOG2E / two_t2
    along_scale = 2.0 * (1.0 - t) * x_inverse * code_inverse
    norm_scale = -2.0 * (1.0 - t) * (1.0 - t)
    if p_threshold is not None:
        threshold = tl.load(p_threshold + i_r, mask=m_t, other=0.0)[:, None]
        offset = tl.load(p_largest + i_r, mask=m_t, other=0.0)[:, None]
    else:
        # Any logit of the row will do to keep the digits of logits far from zero.
        offset, first = tl.where(m_t, float("-inf"), 0.0), 0
        while (first < vocabulary) & (tl.min(offset, 0) == float("-inf")):
            o_v = first + tl.arange(0, BLOCK_V)[None, :]
            m_v = m_t2 & (o_v < vocabulary)
            b_l = guided_logits(p_cond + o_v, p_uncond + o_v, scale, m_v, GUIDED)
            offset = tl.maximum(offset, tl.max(b_l, 1))
            first += BLOCK_V
        offset = tl.where(tl.abs(offset) < float("inf"), offset, 0.0)[:, None]

    best = tl.full([BLOCK_T], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_T], tl.float32)
    b_mean = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    if p_u is not None:
        p_u += o_t[:, None] * dim
        u_factor, u_inverse = _token_scaling(p_u, m_t2, dim, None, t, BLOCK_T, BLOCK_C)
        u_high, u_low = _token_split(p_u, m_t2, i_c, dim, None, t, u_factor, BLOCK_C)
        along_best = tl.zeros([BLOCK_T], tl.float32)  # c_best·u
        along = tl.zeros([BLOCK_T], tl.float32)  # sum w z,  z = (c - c_best)·u
        b_spread = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)  # sum w z c
    for first in range(0, vocabulary, BLOCK_V):
        o_v = first + tl.arange(0, BLOCK_V)
        m_v = o_v < vocabulary
        b_l = guided_logits(
            p_cond + o_v[None, :], p_uncond + o_v[None, :], scale, m_t2 & m_v[None, :], GUIDED
        )
        if p_threshold is not None:
            b_l = tl.where(b_l >= threshold, b_l, float("-inf"))
        half_norm = tl.load(p_half_norm + o_v, mask=m_v, other=0.0)
        p_tile = o_v.to(tl.int64)[:, None] * PADDED + tl.arange(0, BLOCK_C)
        c_high = tl.load(p_high + p_tile + i_c, mask=m_v[:, None], other=0.0)
        c_low = tl.load(p_low + p_tile + i_c, mask=m_v[:, None], other=0.0)
        b_dot = _product(x_high, x_low, tl.trans(c_high), tl.trans(c_low))
        if p_u is not None:
            b_along = _product(u_high, u_low, tl.trans(c_high), tl.trans(c_low))
        if PADDED > BLOCK_C:
            for other in tl.range(BLOCK_C, PADDED, BLOCK_C, num_stages=1):
                i_o = (i_c + other) % PADDED
                o_high = tl.load(p_high + p_tile + i_o, mask=m_v[:, None], other=0.0)
                o_low = tl.load(p_low + p_tile + i_o, mask=m_v[:, None], other=0.0)
                y_high, y_low = _token_split(p_x, m_t2, i_o, dim, p_centre, t, x_factor, BLOCK_C)
                b_dot += _product(y_high, y_low, tl.trans(o_high), tl.trans(o_low))
                if p_u is not None:
                    y_high, y_low = _token_split(p_u, m_t2, i_o, dim, None, t, u_factor, BLOCK_C)
                    b_along += _product(y_high, y_low, tl.trans(o_high), tl.trans(o_low))
        b_s = tl.fma(norm_scale[:, None], half_norm[None, :], b_dot * along_scale[:, None])
        b_s = tl.fma(two_t2[:, None], b_l - offset, b_s)

        tile_best = tl.max(b_s, 1)
        new_best = tl.maximum(best, tile_best)
        finite_best = tl.where(new_best == float("-inf"), 0.0, new_best)
        shrink = tl.exp2((best - finite_best) * exponent)
        # Weights are up to 2^14, so that the halves of the smallest that matter stay normal.
        b_w = tl.exp2(tl.fma(b_s - finite_best[:, None], exponent[:, None], _HALF_BITS + 1.0))
        w_high, w_low = _split(b_w)
        # Added outside of the tensor core, which truncates its sums.
        b_part = _product(w_high, w_low, c_high, c_low)
        if p_u is not None:
            tile_along = tl.max(tl.where(b_s == tile_best[:, None], b_along, float("-inf")), 1)
            new_along = tl.where(tile_best > best, tile_along, along_best)
            shift = along_best - new_along
            b_spread = (b_spread + shift[:, None] * b_mean) * shrink[:, None]
            along = (along + shift * weight) * shrink
            along_best = new_along
            # |z| < 2^29 PADDED, and w z has to stay below 2^16.
            b_wz = b_w * (b_along - new_along[:, None]) * (2.0**-28 / PADDED)
            wz_high, wz_low = _split(b_wz)
            b_spread += _product(wz_high, wz_low, c_high, c_low) * (2.0**28 * PADDED)
            along += tl.sum(b_wz, 1) * (2.0**28 * PADDED)
        b_mean = b_mean * shrink[:, None] + b_part
        weight = weight * shrink + tl.sum(b_w, 1)
        best = new_best

    o_c = i_c + tl.arange(0, BLOCK_C)
    o_out = o_t[:, None] * dim + o_c
    m_out = m_t2 & (o_c < dim)
    b_x0 = b_mean * (code_inverse / weight)[:, None]
    if p_out is not None:
        b_m = tl.load(p_centre + o_c, mask=o_c < dim, other=0.0)[None, :]
        tl.store(p_out + o_out, b_x0 + b_m, mask=m_out)
    if p_u is not None:
        jacobian = 2.0 * (1.0 - t) / two_t2
        b_spread = b_spread * (code_inverse / weight)[:, None] - b_x0 * (along / weight)[:, None]
        b_ju = b_spread * (u_inverse * code_inverse)[:, None] * jacobian[:, None]
        tl.store(p_jacobian + o_out, b_ju, mask=m_out)


def tiling(dim: int, jacobian: bool, aligned: bool, major: int) -> dict[str, int]:
    """Tokens, codes and dimensions at a time: the largest tiles whose sums do not spill.

    ``major`` is that of the compute capability: 9 and 10 multiply out of shared memory, 64 tokens
    and more at a time. Rows of logits that are not aligned take a pointer a logit.
    """
    shared_operands = major in (9, 10)
    tokens, codes, widest = 64, 32, 32
    if shared_operands and not jacobian and aligned and dim <= 64:
        codes, widest = 64, 64
    elif dim > 64 or (jacobian and not shared_operands and dim > 32):
        tokens = 32
    block = min(widest, max(16, triton.next_power_of_2(dim)))
    padded = triton.cdiv(dim, block) * block
    return {"BLOCK_T": tokens, "BLOCK_V": codes, "BLOCK_C": block, "PADDED": padded}


def _split_codebook(codebook: Tensor, block: int, padded: int) -> tuple[Tensor, ...]:
    """``p_high, p_low, p_half_norm, p_inverse, p_centre`` of a codebook ``[V, C]``."""
    vocabulary, dim = codebook.shape
    high, low = codebook.new_empty(2, vocabulary, padded, dtype=torch.float16)
    split = high, low, codebook.new_empty(vocabulary), codebook.new_empty(1)
    centre = codebook.mean(0)
    codes = (codebook - centre).contiguous()
    largest = torch.linalg.vector_norm(codes, torch.inf)
    split_codebook_kernel[(triton.cdiv(vocabulary, 64),)](
        *split, codes, largest, vocabulary, dim,
        BLOCK_V=64, BLOCK_C=block, PADDED=padded, **OPTIONS,
    )  # fmt: skip
    return *split, centre


def solve(
    out: Tensor | None,
    jacobian: Tensor | None,
    direction: Tensor | None,
    x_t: Tensor,
    t: Tensor,
    logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    codebook: Tensor,
    top_k: int,
    top_p: float,
) -> None:
    """Fills ``out`` with x0 and ``jacobian`` with ``J direction``, of the shape of ``x_t``."""
    if x_t.numel() == 0:
        return
    rows, draws, dim = x_t.shape
    with on_device_of(x_t):
        teacher = TeacherRows(logits, uncond_logits, guidance_scale, top_k, top_p)
        limits = teacher.limits()
        direction = None if direction is None else direction.contiguous()
        tiles = tiling(dim, direction is not None, teacher.aligned, compute_major(x_t))
        codes = _split_codebook(codebook, tiles["BLOCK_C"], tiles["PADDED"])
        blocks = triton.cdiv(rows * draws, tiles["BLOCK_T"])
        conditional_score_fwd_kernel[(blocks, tiles["PADDED"] // tiles["BLOCK_C"])](
            out, jacobian, x_t.contiguous(), t.contiguous(), direction, *codes, *limits,
            *teacher.arguments, rows * draws, draws, dim,
            GUIDED=teacher.guided, **tiles, num_warps=4, **OPTIONS,
        )  # fmt: skip


def conditional_x0(x_t: Tensor, *arguments: Any) -> Tensor:
    """Posterior mean; arguments as in :mod:`.reference`."""
    out = torch.empty_like(x_t, memory_format=torch.contiguous_format)
    solve(out, None, None, x_t, *arguments)
    return out


def conditional_x0_vjp(grad: Tensor, x_t: Tensor, *arguments: Any) -> Tensor:
    """``J grad``; arguments as in :mod:`.reference`."""
    out = torch.empty_like(x_t, memory_format=torch.contiguous_format)
    solve(None, out, grad, x_t, *arguments)
    return out
