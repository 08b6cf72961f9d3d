"""Arguments of the compiled kernels from tensors; used by ``cpu``, ``cuda`` and ``cupy``."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .. import structs
from ..native import Launch, TeacherRows, address


class SampleCodeParams(ctypes.Structure):
    """``dd2::SampleCodeParams``."""

    _fields_ = [
        ("teacher", structs.TeacherRows),
        *structs.fields("out seed index", ctypes.c_void_p),
        ("seed_stride", ctypes.c_longlong),
        ("inverse_temperature", ctypes.c_float),
    ]


def run(
    launch: Launch,
    logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    seed: Tensor,
    index: Tensor | None,
    top_k: int,
    top_p: float,
    temperature: float,
) -> Tensor:
    """Codes ``[R]`` by ``launch(params)``; arguments as in :mod:`.reference`."""
    teacher = TeacherRows(logits, uncond_logits, guidance_scale, top_k, top_p)
    index = None if index is None else index.contiguous()
    seed = seed.contiguous()
    out = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    launch(
        SampleCodeParams(
            teacher=teacher.arguments,
            out=out.data_ptr(),
            seed=seed.data_ptr(),
            index=address(index),
            seed_stride=seed.ndim,
            inverse_temperature=1 / temperature,
        )
    )
    return out
