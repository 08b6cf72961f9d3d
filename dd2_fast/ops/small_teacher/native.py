"""Arguments of the compiled kernel from tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import structs
from ..native import Launch
from ..small_network import SmallTransformer


class SmallTeacherParams(ctypes.Structure):
    """``dd2::SmallTeacherParams``."""

    _fields_ = [
        ("network", SmallTransformer),
        *structs.fields("codebook labels index step_seeds out", ctypes.c_void_p),
        *structs.fields("images seed_stride", ctypes.c_longlong),
        *structs.fields("prefix vocabulary", ctypes.c_int),
        ("top_k", ctypes.c_longlong),
        *structs.fields("top_p scale", ctypes.c_float),
    ]


def run(
    launch: Launch,
    tokens: Tensor,
    labels: Tensor,
    index: Tensor,
    seeds: Tensor,
    weights: Tensor,
    codebook: Tensor,
    sizes: Sequence[int],
    prefix: int,
    scale: float,
    top_k: int,
    top_p: float,
) -> Tensor:
    """Codes by ``launch(params)``; arguments as in :mod:`.reference`."""
    out = tokens.clone(memory_format=torch.contiguous_format)
    labels, index, seeds = labels.contiguous(), index.contiguous(), seeds.contiguous()
    codebook = codebook.contiguous()
    classes, width, layers, heads = sizes
    vocabulary, dim = codebook.shape
    network = SmallTransformer(
        weights.data_ptr(), classes, tokens.shape[1], dim, width, layers, heads
    )
    launch(
        SmallTeacherParams(
            network=network,
            codebook=codebook.data_ptr(),
            labels=labels.data_ptr(),
            index=index.data_ptr(),
            step_seeds=seeds.data_ptr(),
            out=out.data_ptr(),
            images=len(out),
            seed_stride=tokens.shape[1] if seeds.ndim == 2 else 0,
            prefix=prefix,
            vocabulary=vocabulary,
            top_k=top_k,
            top_p=top_p,
            scale=scale,
        )
    )
    return out
