"""Arguments of the compiled kernels from tensors; used by ``cpu``, ``cuda`` and ``cupy``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import structs
from ..native import Launch, TeacherRows, address


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
        structs.ConditionalScoreParams(
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
