"""Distilled Decoding 1 (arXiv 2412.17153): the flow ODE from noise to code, and its regression."""

from __future__ import annotations

import torch
from torch import Tensor

from .target import TeacherDistribution, TeacherScore


def flow_solve(noise: Tensor, distribution: TeacherDistribution, steps: int = 20) -> Tensor:
    """``x_0`` of ``dx/dt = v_teacher(x, t)`` from ``x_1 = noise [*, C]`` by Heun's method.

    The times are ``1, (steps-1)/steps, ..., 1/steps``; the last step is the posterior mean at
    ``t = 1/steps`` (the Euler step to ``t = 0``).
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    x = noise
    for i in range(steps, 1, -1):
        t, s = i / steps, (i - 1) / steps
        velocity = distribution.predict(x, _level(x, t), "velocity")
        ahead = x + (s - t) * velocity
        x = x + (s - t) / 2 * (velocity + distribution.predict(ahead, _level(x, s), "velocity"))
    return distribution.predict(x, _level(x, 1 / steps), "x0")


def _level(x: Tensor, t: float) -> Tensor:
    return x.new_full(x.shape[:-1], t)


@torch.no_grad()
def flow_pairs(noise: Tensor, labels: Tensor, score: TeacherScore, steps: int = 20) -> Tensor:
    """Tokens ``[B, n]`` (int64) that DD1's map gives for ``noise [B, n, C]``, token by token.

    Token ``i`` is the code nearest to the end of the ODE under ``p(q_i | q_<i)``; exactly a sample
    of the teacher as the number of steps grows.
    """
    teacher = score.teacher
    codebook = teacher.codebook
    half_norm = 0.5 * codebook.square().sum(-1)
    scale = teacher.guidance_scale(score.cfg)

    def choose(i: int, logits: Tensor, uncond_logits: Tensor | None) -> Tensor:
        guidance = _at(scale, i) if uncond_logits is not None else 1.0
        row = TeacherDistribution(
            codebook, logits, uncond_logits, guidance, score.top_k, score.top_p
        )
        end = flow_solve(noise[:, i], row, steps)
        return torch.addmm(half_norm, end, codebook.T, alpha=-1).argmin(-1)

    guided = isinstance(scale, Tensor) or scale != 1.0
    return teacher.generate(labels, choose, guided=guided)


def _at(scale: Tensor | float, i: int) -> Tensor | float:
    return scale[i] if isinstance(scale, Tensor) and scale.ndim else scale


def dd1_loss(x: Tensor, target: Tensor) -> Tensor:
    """``|G(eps) - x_0|^2`` per token, for a pair ``(eps, x_0)`` of :func:`flow_pairs`."""
    return (x - target).square().sum(-1)
