"""Arguments of kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from dd2_fast.ops.native import LOGIT_TYPES
from dd2_fast.ops.structs import TeacherRows


def teacher_rows(
    logits: Tensor, uncond: Tensor | None, scale: Tensor, top_k: int, top_p: float
) -> TeacherRows:
    """Points into the tensors, which the caller keeps alive; ``scale [rows]`` is float32."""
    return TeacherRows(
        logits=logits.data_ptr(),
        uncond=0 if uncond is None else uncond.data_ptr(),
        scale=scale.data_ptr(),
        logits_stride=logits.stride(0),
        uncond_stride=0 if uncond is None else uncond.stride(0),
        rows=logits.shape[0],
        vocabulary=logits.shape[1],
        top_k=top_k,
        top_p=top_p,
        logit_type=LOGIT_TYPES[logits.dtype],
    )


def unaligned(tensor: Tensor) -> Tensor:
    """The same values where no 16-byte load may begin."""
    return torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view_as(tensor).copy_(tensor)
