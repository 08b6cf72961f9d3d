"""Arguments of the compiled kernels from tensors; used by ``cpu``, ``cuda`` and ``cupy``."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .. import structs
from ..native import LOGIT_TYPES, Launch, TeacherRows, unit_stride


class LogitDistillationLossParams(ctypes.Structure):
    """``dd2::LogitDistillationLossParams``."""

    _fields_ = [
        ("teacher", structs.TeacherRows),
        *structs.fields("student loss statistics gradient incoming", ctypes.c_void_p),
        ("student_stride", ctypes.c_longlong),
        ("student_type", ctypes.c_int),
    ]


def _call(launch: Launch, outputs: dict[str, int], logits: Tensor, *teacher: Any) -> None:
    """``launch(params)`` with the addresses in ``outputs``; ``teacher`` as of TeacherRows."""
    logits, rows = unit_stride(logits), TeacherRows(*teacher)
    launch(
        LogitDistillationLossParams(
            teacher=rows.arguments,
            student=logits.data_ptr(),
            student_stride=logits.stride(0),
            student_type=LOGIT_TYPES[logits.dtype],
            **outputs,
        )
    )


def run(
    launch: Launch,
    logits: Tensor,
    teacher_logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    top_k: int,
    top_p: float,
) -> tuple[Tensor, Tensor]:
    """Loss and statistics by ``launch(params)``; arguments as in :mod:`.reference`."""
    loss = guidance_scale.new_empty(len(logits))
    statistics = guidance_scale.new_empty(len(logits), 5)
    outputs = {"loss": loss.data_ptr(), "statistics": statistics.data_ptr()}
    _call(launch, outputs, logits, teacher_logits, uncond_logits, guidance_scale, top_k, top_p)
    return loss, statistics


def run_backward(
    launch: Launch,
    grad: Tensor,
    statistics: Tensor,
    logits: Tensor,
    teacher_logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
) -> Tensor:
    """The gradient by ``launch(params)``; arguments as in :mod:`.reference`."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    grad, statistics = grad.contiguous(), statistics.contiguous()
    outputs = {
        "statistics": statistics.data_ptr(),
        "gradient": gradient.data_ptr(),
        "incoming": grad.data_ptr(),
    }
    _call(launch, outputs, logits, teacher_logits, uncond_logits, guidance_scale, 0, 1.0)
    return gradient
