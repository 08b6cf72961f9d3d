"""Arguments of the compiled kernels from tensors; used by ``cuda`` and ``cupy``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import structs
from ..native import LOGIT_TYPES, Launch, address, unit_stride

MOST_BLOCKS = 24  # of tokens


class BlockEnds(ctypes.Structure):
    """``dd2::BlockEnds``."""

    _fields_ = [("at", ctypes.c_int * MOST_BLOCKS)]


class BlockCausalAttentionParams(ctypes.Structure):
    """``dd2::BlockCausalAttentionParams``."""

    _fields_ = [
        *structs.fields("out qkv gain rotary", ctypes.c_void_p),
        *structs.fields("image_stride token_stride part_stride head_stride", ctypes.c_longlong),
        *structs.fields("images tokens heads size", ctypes.c_longlong),
        ("scale", ctypes.c_float),
        *structs.fields("strict type blocks", ctypes.c_int),
        ("ends", BlockEnds),
    ]


def run(
    launch: Launch,
    qkv: Tensor,
    ends: Sequence[int],
    gain: Tensor | None,
    rotary: Tensor | None,
    strict: bool,
    scale: float,
) -> Tensor:
    """Mixed values by ``launch(params)``; arguments as in :mod:`.reference`."""
    images, count, _, heads, size = qkv.shape
    out = qkv.new_empty(images, count, heads * size)
    if out.numel() == 0:
        return out
    qkv = unit_stride(qkv)
    if qkv.stride(1) * qkv.element_size() >= 2**31:  # the kernel has it in 32 bits
        qkv = qkv.contiguous()
    gain, rotary = (
        None if table is None else table.to(torch.float32).contiguous() for table in (gain, rotary)
    )
    image_stride, token_stride, part_stride, head_stride = qkv.stride()[:4]
    launch(
        BlockCausalAttentionParams(
            out=out.data_ptr(),
            qkv=qkv.data_ptr(),
            gain=address(gain),
            rotary=address(rotary),
            image_stride=image_stride,
            token_stride=token_stride,
            part_stride=part_stride,
            head_stride=head_stride,
            images=images,
            tokens=count,
            heads=heads,
            size=size,
            scale=scale,
            strict=strict and bool(ends),
            type=LOGIT_TYPES[qkv.dtype],
            blocks=len(ends),
            ends=BlockEnds((ctypes.c_int * MOST_BLOCKS)(*ends)),
        )
    )
    return out
