"""Refinement of one-step tokens by the teacher (paper Alg. 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..models.sampling import draw_tokens
from .noise import TOKEN_STREAM, image_uniform


def refine(
    teacher: Any,
    tokens: Tensor,
    labels: Tensor,
    indices: Tensor,
    *,
    count: int,
    seed: int,
    cfg: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Return tokens [B, n] with the last `count` drawn anew from the teacher given their prefix.

    Every draw inverts the distribution function at a uniform that belongs to (seed, image index,
    position), so it does not depend on the batch. labels [B] and indices [B] are int64.
    """
    tokens = tokens.clone()
    length = tokens.shape[1]
    uniform = image_uniform(seed, indices, length, stream=TOKEN_STREAM).float()
    scale = torch.as_tensor(teacher.guidance_scale(cfg), device=tokens.device).expand(length)
    null = torch.full_like(labels, teacher.num_classes)
    for i in range(length - count, length):
        logits = teacher.logits(tokens, labels)[:, i].float()
        guided = float(scale[i]) != 1.0
        uncond = teacher.logits(tokens, null)[:, i].float() if guided else None
        tokens[:, i] = draw_tokens(uniform[:, i], logits, uncond, scale[i], top_k, top_p)
    return tokens
