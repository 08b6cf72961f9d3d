"""Arguments of the compiled kernels from tensors; used by ``cpu``, ``cuda`` and ``cupy``."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .. import structs
from ..native import Launch, TeacherRows


class FlowSolveParams(ctypes.Structure):
    """``dd2::FlowSolveParams``."""

    _fields_ = [
        ("teacher", structs.TeacherRows),
        *structs.fields("out noise codebook", ctypes.c_void_p),
        *structs.fields("draws dim steps", ctypes.c_longlong),
        ("heun", ctypes.c_bool),
    ]


def run(
    launch: Launch,
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
    """Codes ``[R, M]`` by ``launch(params)``; arguments as in :mod:`.reference`."""
    teacher = TeacherRows(logits, uncond_logits, guidance_scale, top_k, top_p)
    noise, codebook = noise.contiguous(), codebook.contiguous()
    out = torch.empty(noise.shape[:2], dtype=torch.int64, device=noise.device)
    launch(
        FlowSolveParams(
            teacher=teacher.arguments,
            out=out.data_ptr(),
            noise=noise.data_ptr(),
            codebook=codebook.data_ptr(),
            draws=noise.shape[1],
            dim=noise.shape[2],
            steps=steps,
            heun=solver == "heun",
        )
    )
    return out
