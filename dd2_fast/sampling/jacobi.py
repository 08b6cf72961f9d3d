"""Further passes of the teacher over all tokens at once, with the noise they were made from."""

from __future__ import annotations

import torch
from torch import Tensor

from ..condition import Rows, condition_of
from ..losses import TeacherScore
from ..models.family import Teacher
from .noise import image_noise

NEEDS = ("guidance_scale", "logits", "steps")  # what a teacher needs for it
FLOW_STEPS = 20  # after a generator that has none of its own
_VALUES = 1 << 28  # logits that are held at once


def jacobi(
    teacher: Teacher,
    tokens: Tensor,
    labels: Rows,
    indices: Tensor,
    *,
    passes: int,
    seed: int | Tensor,
    flow_steps: int = FLOW_STEPS,
    cfg: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Return tokens [B, n] after ``passes`` times ``q_i <- flow_solve(eps_i, l_i(q_<i))`` of all
    ``i`` at once.

    ``l`` are the teacher's guided and filtered logits, ``eps`` the noise of (seed, image index)
    that a generator's tokens came from. A pass makes one more of the teacher's steps exact, so that
    as many as it has steps give DD1's map of the noise, the teacher's own distribution, whatever
    the tokens are that they start from; from tokens close to it few come near.

    labels are conditions, indices [B] int64, and so is seed where every image has one; cfg None is
    none. A token whose logits were not finite is -1. Source of the iteration: Song et al.,
    Accelerating feedforward computation via parallel nonlinear equation solving (arXiv 2002.03629).
    """
    codebook, condition = teacher.codebook, condition_of(teacher)
    score = TeacherScore(teacher, cfg=cfg, top_k=top_k, top_p=top_p)
    noise = image_noise(seed, indices, (tokens.shape[1], codebook.shape[1])).to(codebook.dtype)
    at_once = getattr(teacher, "pass_at_once", None)
    if at_once is not None:
        scale = score.guidance_scale()
        passed: Tensor | None = at_once(
            tokens, labels, noise, passes, flow_steps, scale, top_k, top_p
        )
        if passed is not None:
            return passed
    size = max(1, _VALUES // (tokens.shape[1] * len(codebook)))
    parts = []
    for part, eps, rows in zip(
        tokens.split(size), noise.split(size), condition.split(labels, size), strict=True
    ):
        for _ in range(passes):
            part = score(part.clamp(min=0), rows).flow(eps, flow_steps)
        parts.append(part)
    return torch.cat(parts)
