"""Arguments of the compiled kernels from tensors; used by the ``cpu`` and ``cuda`` backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import extension
from ..native import TeacherRows


def run(
    launch: Callable[[Any], None],
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
        extension.native().FlowSolveParams(
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
