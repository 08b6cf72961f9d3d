"""The nearest code in Triton: a running minimum of direct differences over tiles of codes.

Differences and not a matrix product: equal codes tie exactly, and nothing cancels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_rows import OPTIONS, on_device_of

_TOKENS, _CODES = 64, 128  # in a tile


@triton.jit(do_not_specialize=["tokens"])
def nearest_code_fwd_kernel(
    p_out, p_x, p_columns, tokens, vocabulary, dim, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr
):
    """grid (ceil(tokens / BLOCK_T)); p_columns: the codebook transposed, [C, V]."""
    o_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    m_t = o_t < tokens
    best = tl.full([BLOCK_T], float("inf"), tl.float32)
    code = tl.full([BLOCK_T], -1, tl.int32)
    for first in range(0, vocabulary, BLOCK_V):
        o_v = first + tl.arange(0, BLOCK_V)
        m_v = o_v < vocabulary
        b_distance = tl.zeros([BLOCK_T, BLOCK_V], tl.float32)
        p_value, p_code = p_x + o_t * dim, p_columns + o_v
        for _ in range(dim):
            value = tl.load(p_value, mask=m_t, other=0.0)
            b_difference = value[:, None] - tl.load(p_code, mask=m_v, other=0.0)[None, :]
            b_distance = tl.fma(b_difference, b_difference, b_distance)
            p_value += 1
            p_code += vocabulary
        reachable = (b_distance < float("inf")) & m_v[None, :]
        b_distance = tl.where(reachable, b_distance, float("inf"))
        tile_best, tile_code = tl.min(b_distance, 1, return_indices=True)
        code = tl.where(tile_best < best, first + tile_code, code)
        best = tl.minimum(best, tile_best)
    tl.store(p_out + o_t, code.to(tl.int64), mask=m_t)


def nearest_code(x: Tensor, codebook: Tensor) -> Tensor:
    """Indices; arguments as in :mod:`.reference`."""
    out = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)
    if out.numel() == 0:
        return out
    with on_device_of(x):
        nearest_code_fwd_kernel[(triton.cdiv(x.shape[0], _TOKENS),)](
            out, x.contiguous(), codebook.T.contiguous(), *x.shape[:1], *codebook.shape,
            BLOCK_T=_TOKENS, BLOCK_V=_CODES, num_warps=8, **OPTIONS,
        )  # fmt: skip
    return out
