"""Arguments of the compiled kernels from tensors; used by ``cpu``, ``cuda`` and ``cupy``."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .. import structs
from ..native import Launch


class NearestCodeParams(ctypes.Structure):
    """``dd2::NearestCodeParams``."""

    _fields_ = [
        *structs.fields("out x codebook", ctypes.c_void_p),
        *structs.fields("rows vocabulary dim", ctypes.c_longlong),
    ]


def run(launch: Launch, x: Tensor, codebook: Tensor) -> Tensor:
    """Indices ``[R]`` by ``launch(params)``; arguments as in :mod:`.reference`."""
    x, codebook = x.contiguous(), codebook.contiguous()
    out = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)
    launch(
        NearestCodeParams(
            out=out.data_ptr(),
            x=x.data_ptr(),
            codebook=codebook.data_ptr(),
            rows=x.shape[0],
            vocabulary=codebook.shape[0],
            dim=codebook.shape[1],
        )
    )
    return out
