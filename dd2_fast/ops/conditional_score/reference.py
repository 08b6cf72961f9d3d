"""The conditional score in plain torch: the specification of every other backend.

Given the teacher's probabilities ``p_j`` over codes ``c_j``, the noisy token
``x_t = (1-t) x_0 + t eps`` has the posterior weights and mean (paper Eq. 1)

    w_j  ∝  p_j exp(-|x_t - (1-t) c_j|^2 / (2 t^2)),     x0 = sum_j w_j c_j

and the Jacobian of ``x0`` in ``x_t`` is symmetric. With any reference code ``c_r`` and
``z_j = (c_j - c_r)·u``

    J u = (1-t)/t^2 (sum_j w_j c_j z_j - x0 sum_j w_j z_j).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..filtering import filter_logits, guided_logits


def _posterior(
    x_t: Tensor,
    t: Tensor,
    logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    codebook: Tensor,
    top_k: int,
    top_p: float,
) -> Tensor:
    """Posterior weights ``[R, M, V]``.

    The exponent is kept times ``2 t^2`` until its row maximum is subtracted, which keeps it
    finite however small t is; the logits enter relative to their largest.
    """
    dtype = x_t.dtype
    guided = guided_logits(
        logits.to(dtype), None if uncond_logits is None else uncond_logits.to(dtype), guidance_scale
    )
    kept = filter_logits(guided, top_k, top_p)[:, None, :]
    kept = kept - kept.amax(-1, keepdim=True)
    t = t[..., None]
    two_t2 = 2 * t * t
    signal = 1 - t
    # Around the mean code, from which x_t and the codes of a codebook far from zero are not far.
    centre = codebook.mean(0)
    codes = codebook - centre
    half_norm = 0.5 * codes.square().sum(-1)
    scaled = ((x_t - centre + t * centre) @ codes.T - signal * half_norm) * (2 * signal)
    scaled = torch.where(kept == -torch.inf, kept, scaled + two_t2 * kept)
    scaled = scaled - scaled.amax(-1, keepdim=True)
    return (scaled * (1 / two_t2).clamp(max=torch.finfo(dtype).max)).softmax(-1)


def conditional_x0(
    x_t: Tensor,
    t: Tensor,
    logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    codebook: Tensor,
    top_k: int,
    top_p: float,
) -> Tensor:
    """Posterior mean ``[R, M, C]`` of ``x_t [R, M, C]`` at ``t [R, M]`` under ``logits [R, V]``.

    Works in the dtype of ``x_t`` (float32 or float64); ``guidance_scale [R]`` and
    ``codebook [V, C]`` have it too.
    """
    weights = _posterior(x_t, t, logits, uncond_logits, guidance_scale, codebook, top_k, top_p)
    return weights @ codebook


def conditional_x0_vjp(
    grad: Tensor,
    x_t: Tensor,
    t: Tensor,
    logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    codebook: Tensor,
    top_k: int,
    top_p: float,
) -> Tensor:
    """``J grad``, the vector-Jacobian product of :func:`conditional_x0` in ``x_t``."""
    weights = _posterior(x_t, t, logits, uncond_logits, guidance_scale, codebook, top_k, top_p)
    codebook = codebook - codebook.mean(0)  # which J does not depend on
    x0 = weights @ codebook
    along = grad @ codebook.T
    along = along - along.gather(-1, weights.argmax(-1, keepdim=True))
    weighted = weights * along
    spread = weighted @ codebook - x0 * weighted.sum(-1, keepdim=True)
    t = t[..., None]
    return spread * ((1 - t) / (t * t)).clamp(max=torch.finfo(t.dtype).max)
