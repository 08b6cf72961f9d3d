"""Arguments of the compiled kernels from tensors; used by the ``cpu`` and ``cuda`` backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import extension

_LOGIT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


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
    x_t, t, codebook = x_t.contiguous(), t.contiguous(), codebook.contiguous()
    guidance_scale, logits = guidance_scale.contiguous(), _unit_stride(logits)
    direction = None if direction is None else direction.contiguous()
    uncond_logits = None if uncond_logits is None else _unit_stride(uncond_logits)
    out = torch.empty_like(x_t)
    rows, draws, dim = x_t.shape
    launch(
        extension.native().ConditionalScoreParams(
            out=out.data_ptr(),
            x_t=x_t.data_ptr(),
            t=t.data_ptr(),
            direction=0 if direction is None else direction.data_ptr(),
            logits=logits.data_ptr(),
            uncond=0 if uncond_logits is None else uncond_logits.data_ptr(),
            scale=guidance_scale.data_ptr(),
            codebook=codebook.data_ptr(),
            logits_stride=logits.stride(0),
            uncond_stride=0 if uncond_logits is None else uncond_logits.stride(0),
            rows=rows,
            draws=draws,
            vocabulary=codebook.shape[0],
            dim=dim,
            top_k=top_k,
            top_p=top_p,
            logit_type=_LOGIT_TYPES[logits.dtype],
        )
    )
    return out
