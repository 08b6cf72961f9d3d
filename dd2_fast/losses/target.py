"""The teacher's next-token distributions at every position, and what they say of noisy tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ops import conditional_score


@dataclass(frozen=True)
class TeacherDistribution:
    """Sampling distributions of a teacher: logits ``[*, V]`` with guidance and filters to apply."""

    codebook: Tensor
    logits: Tensor
    uncond_logits: Tensor | None = None
    guidance_scale: Tensor | float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def predict(self, x_t: Tensor, t: Tensor, prediction: str) -> Tensor:
        """``"x0"`` or ``"velocity"`` of ``x_t [*, C]`` or ``[*, M, C]`` by paper Eq. 1."""
        return conditional_score(
            x_t,
            t,
            self.logits,
            self.codebook,
            uncond_logits=self.uncond_logits,
            guidance_scale=self.guidance_scale,
            top_k=self.top_k,
            top_p=self.top_p,
            prediction=prediction,
        )


@dataclass(frozen=True)
class TeacherScore:
    """A frozen teacher with the settings of its sampling distribution."""

    teacher: Any
    cfg: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @torch.no_grad()
    def __call__(self, tokens_or_embeddings: Tensor, labels: Tensor) -> TeacherDistribution:
        """Distributions of all ``n`` tokens given their prefixes, in one or two passes."""
        teacher = self.teacher
        scale = teacher.guidance_scale(self.cfg)
        logits = teacher.logits(tokens_or_embeddings, labels)
        uncond = None
        if isinstance(scale, Tensor) or scale != 1.0:
            null = torch.full_like(labels, teacher.num_classes)
            uncond = teacher.logits(tokens_or_embeddings, null)
        return TeacherDistribution(
            teacher.codebook,
            logits,
            uncond,
            scale if uncond is not None else 1.0,
            self.top_k,
            self.top_p,
        )
