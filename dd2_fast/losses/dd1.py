"""Distilled Decoding 1 (arXiv 2412.17153): its map from noise to tokens, and its regression."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..condition import Rows
from ..ops import flow_solve
from .target import TeacherScore, check_teacher


@torch.no_grad()
def flow_pairs(noise: Tensor, labels: Rows, score: TeacherScore, steps: int = 20) -> Tensor:
    """Tokens ``[B, n]`` (int64) that DD1's map gives for ``noise [B, n, C]``, step by step.

    Token ``i`` is the code to which the flow under ``p(q_i | q_<i)`` carries ``noise[:, i]``
    (:func:`dd2_fast.ops.flow_solve` by Heun's method): in the limit of many steps exactly a sample
    of the teacher, and always one of the codes its filters keep.

    Raises:
        TypeError: the teacher has no ``generate``.
        ValueError: the noise or the teacher's logits have a NaN or infinity.
    """
    teacher: Any = score.teacher  # with generate, too
    check_teacher(teacher, ("generate",))
    scale = score.guidance_scale()

    def choose(positions: slice, logits: Tensor, uncond_logits: Tensor | None) -> Tensor:
        return flow_solve(
            noise[:, positions],
            logits,
            teacher.codebook,
            steps=steps,
            uncond_logits=uncond_logits,
            guidance_scale=1.0 if uncond_logits is None else _at(scale, positions),
            top_k=score.top_k,
            top_p=score.top_p,
        )

    guided = isinstance(scale, Tensor) or scale != 1.0
    tokens: Tensor = teacher.generate(labels, choose, guided=guided)
    if (tokens < 0).any():
        image, i = (tokens < 0).nonzero()[0].tolist()
        raise ValueError(
            "noise, score: expected finite noise and teacher's logits, got a NaN or infinity at "
            f"token {i} of image {image}"
        )
    return tokens


def _at(scale: Tensor | float, positions: slice) -> Tensor | float:
    return scale[positions] if isinstance(scale, Tensor) and scale.ndim else scale


def dd1_loss(x: Tensor, target: Tensor) -> Tensor:
    """``|G(eps) - x_0|^2`` per token, for a pair ``(eps, x_0)`` of :func:`flow_pairs`."""
    return (x - target).square().sum(-1)
