"""Arguments of the compiled kernels from tensors; used by the ``cpu`` and ``cuda`` backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import extension
from ..native import TeacherRows, address


def run(
    launch: Callable[[Any], None],
    direction: Tensor | None,
    x_t: Tensor,
    t: Tensor,
    logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    codebook: Tensor,
    top_k: int,
    top_p: float,
) -> Tensor:
    """``x0``, or ``J direction``, of the shape of ``x_t [R, M, C]``, by ``launch(params)``."""
    teacher = TeacherRows(logits, uncond_logits, guidance_scale, top_k, top_p)
    x_t, t, codebook = x_t.contiguous(), t.contiguous(), codebook.contiguous()
    direction = None if direction is None else direction.contiguous()
    out = torch.empty_like(x_t)
    launch(
        extension.native().ConditionalScoreParams(
            teacher=teacher.arguments,
            out=out.data_ptr(),
            x_t=x_t.data_ptr(),
            t=t.data_ptr(),
            direction=address(direction),
            codebook=codebook.data_ptr(),
            draws=x_t.shape[1],
            dim=x_t.shape[2],
        )
    )
    return out
