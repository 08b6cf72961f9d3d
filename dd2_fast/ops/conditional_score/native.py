"""Arguments of the compiled kernels from tensors; used by ``cpu``, ``cuda`` and ``cupy``."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .. import structs
from ..native import Launch, TeacherRows, address


class CsdLossParams(ctypes.Structure):
    """``dd2::CsdLossParams``."""

    _fields_ = [
        *structs.fields("x fake weight loss grad_x grad_fake grad_x_t", ctypes.c_void_p),
        ("alpha", ctypes.c_float),
        ("dmd", ctypes.c_bool),
        ("weight_power", ctypes.c_float),
    ]


class ConditionalScoreParams(ctypes.Structure):
    """``dd2::ConditionalScoreParams``."""

    _fields_ = [
        ("teacher", structs.TeacherRows),
        *structs.fields("out jacobian x_t t direction codebook", ctypes.c_void_p),
        *structs.fields("draws dim", ctypes.c_longlong),
        ("csd", CsdLossParams),
        ("workspace", ctypes.c_void_p),
    ]


def call(
    launch: Launch,
    outputs: dict[str, Any],
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
    """Fills what is in ``outputs`` by ``launch(params)``: the addresses ``out`` of x0 and
    ``jacobian`` of ``J direction``, both of the shape of ``x_t [R, M, C]``, and the loss ``csd``.
    """
    teacher = TeacherRows(logits, uncond_logits, guidance_scale, top_k, top_p)
    x_t, t, codebook = x_t.contiguous(), t.contiguous(), codebook.contiguous()
    direction = None if direction is None else direction.contiguous()
    launch(
        ConditionalScoreParams(
            teacher=teacher.arguments,
            **{"out": 0, "jacobian": 0, **outputs},
            x_t=x_t.data_ptr(),
            t=t.data_ptr(),
            direction=address(direction),
            codebook=codebook.data_ptr(),
            draws=x_t.shape[1],
            dim=x_t.shape[2],
        )
    )


def run(launch: Launch, direction: Tensor | None, x_t: Tensor, *arguments: Any) -> Tensor:
    """``x0``, or ``J direction``, of the shape of ``x_t [R, M, C]``, by ``launch(params)``."""
    out = torch.empty_like(x_t, memory_format=torch.contiguous_format)
    name = "out" if direction is None else "jacobian"
    call(launch, {name: out.data_ptr()}, direction, x_t, *arguments)
    return out
