"""The noise in Triton: a Philox counter a lane, and so two pairs of normals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_rows import OPTIONS, on_device_of

_BLOCK = 256  # counters
_TURN = tl.constexpr(2 * math.pi)


@triton.jit
def _uniform(b_word):
    return (b_word.to(tl.float64) + 0.5) * 2.0**-32


@triton.jit
def _store_pair(p_pair, left, b_radius, b_angle):
    """The normals of two words at a place with ``left`` numbers to go."""
    radius, angle = tl.sqrt(-2.0 * tl.log(_uniform(b_radius))), _uniform(b_angle) * _TURN
    tl.store(p_pair, (radius * tl.cos(angle)).to(tl.float32), mask=left > 0)
    tl.store(p_pair + 1, (radius * tl.sin(angle)).to(tl.float32), mask=left > 1)


@triton.jit(do_not_specialize=["seed_stride", "images", "count", "stream"])
def image_normal_fwd_kernel(
    p_out, p_indices, p_seeds, seed_stride, images, count, stream, BLOCK: tl.constexpr
):
    """grid (ceil(images * ceil(count / 4) / BLOCK))."""
    o_i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    counters = (count + 3) // 4
    o_image = o_i // counters
    o_counter = o_i - o_image * counters
    m_i = o_image < images
    b_index = tl.load(p_indices + o_image, mask=m_i, other=0)
    b_seed = tl.load(p_seeds + o_image * seed_stride, mask=m_i, other=0)
    low, high = (b_index & 0xFFFFFFFF).to(tl.uint32), (b_index >> 32).to(tl.uint32)
    first, second, third, fourth = tl.philox(
        b_seed, o_counter.to(tl.uint32), low, high, low * 0 + stream.to(tl.uint32)
    )
    left = tl.where(m_i, count - 4 * o_counter, 0)
    p_block = p_out + o_image * count + 4 * o_counter
    _store_pair(p_block, left, first, second)
    _store_pair(p_block + 2, left - 2, third, fourth)


def image_normal(
    seeds: Tensor | None, seed: int, indices: Tensor, shape: Sequence[int], stream: int
) -> Tensor:
    """Normals; arguments as in :mod:`.reference`."""
    images, count = indices.shape[0], math.prod(shape)
    out = torch.empty((images, *shape), dtype=torch.float32, device=indices.device)
    if out.numel() == 0:
        return out
    seed_stride = 0 if seeds is None else 1
    seeds = torch.full_like(indices[:1], seed) if seeds is None else seeds.contiguous()
    with on_device_of(indices):
        image_normal_fwd_kernel[(triton.cdiv(images * -(-count // 4), _BLOCK),)](
            out, indices.contiguous(), seeds, seed_stride, images, count, stream,
            BLOCK=_BLOCK, num_warps=4, **OPTIONS,
        )  # fmt: skip
    return out
