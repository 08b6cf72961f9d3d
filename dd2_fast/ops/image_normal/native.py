"""Arguments of the compiled kernels from tensors; used by ``cpu``, ``cuda`` and ``cupy``."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import structs
from ..native import Launch, address


class ImageNormalParams(ctypes.Structure):
    """``dd2::ImageNormalParams``."""

    _fields_ = [
        *structs.fields("out indices seeds", ctypes.c_void_p),
        *structs.fields("seed images count", ctypes.c_longlong),
        ("stream", ctypes.c_uint),
    ]


def run(
    launch: Launch,
    seeds: Tensor | None,
    seed: int,
    indices: Tensor,
    shape: Sequence[int],
    stream: int,
) -> Tensor:
    """Normals ``[B, *shape]`` by ``launch(params)``; arguments as in :mod:`.reference`."""
    indices = indices.contiguous()
    seeds = None if seeds is None else seeds.contiguous()
    images = indices.shape[0]
    out = torch.empty((images, *shape), dtype=torch.float32, device=indices.device)
    launch(
        ImageNormalParams(
            out=out.data_ptr(),
            indices=indices.data_ptr(),
            seeds=address(seeds),
            seed=seed,
            images=images,
            count=math.prod(shape),
            stream=stream,
        )
    )
    return out
