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
    logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    seed: Tensor,
    top_k: int,
    top_p: float,
    temperature: float,
) -> Tensor:
    """Codes ``[R]`` by ``launch(params)``; arguments as in :mod:`.reference`."""
    teacher = TeacherRows(logits, uncond_logits, guidance_scale, top_k, top_p)
    out = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    launch(
        extension.native().SampleCodeParams(
            teacher=teacher.arguments,
            out=out.data_ptr(),
            seed=seed.data_ptr(),
            inverse_temperature=1 / temperature,
        )
    )
    return out
