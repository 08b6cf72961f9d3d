"""Public ``conditional_score``: validation, shapes and the three predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, teacher_checks
from ..derivatives import check_reverse_mode
from . import schema as schema

PREDICTIONS = ("score", "x0", "velocity")


def conditional_score(
    x_t: Tensor,
    t: Tensor | float,
    logits: Tensor,
    codebook: Tensor,
    *,
    uncond_logits: Tensor | None = None,
    guidance_scale: Tensor | float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    prediction: str = "score",
    backend: str | None = None,
) -> Tensor:
    """Closed-form score of a noisy token under a teacher's next-token distribution.

    Under rectified flow, ``x_t = (1-t) x_0 + t eps``, a token whose clean value is code ``c_j``
    with probability ``p_j`` has the posterior mean and, equivalently, velocity and score

        x0       = sum_j w_j c_j,   w_j ∝ p_j exp(-|x_t - (1-t) c_j|^2 / (2 t^2))
        velocity = (x_t - x0) / t
        score    = -(x_t - (1-t) x0) / t^2

    where ``p`` is the teacher's sampling distribution: classifier-free guidance
    ``l = l_uncond + s (l_cond - l_uncond)``, then top-k (ties stay), then top-p (a token stays iff
    the mass strictly above it is less than p). A code whose logit is -inf, in either of the two,
    has probability zero; a row with no code left gives NaN, and so does a row with a NaN.

    Args:
        x_t: noisy tokens ``[*, C]``, or ``[*, M, C]`` for M draws that share a row of logits.
        t: noise level in (0, 1], 1 is pure noise; broadcasts to ``[*]`` or ``[*, M]``; a constant.
            The values of a tensor are not checked.
        logits: the teacher's logits ``[*, V]``; a constant.
        codebook: code vectors ``[V, C]``; a constant.
        uncond_logits: unconditional logits ``[*, V]``; a constant. None: no guidance.
        guidance_scale: ``s``, a number or broadcastable to ``[*]``; 1 is none; a constant.
        top_k: how many of the largest logits to keep; 0 keeps all.
        top_p: the probability mass to keep, in (0, 1]; 1.0 keeps all.
        prediction: ``"score"``, ``"x0"`` or ``"velocity"``.
        backend: a name in :func:`available_backends`, or None for the fastest that can run.

    Returns:
        The prediction, of the shape of ``x_t``; float32, or float64 if an input is. ``x0`` is
        finite and inside the codebook's convex hull for every t > 0, as long as ``x_t`` and the
        codes are shorter than 1e18: squares of much more overflow float32, and give NaN.
        Differentiable once, in reverse mode, in ``x_t``; with ``backend="torch"`` any number of
        times.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value. The values of
            tensors are not read, which would stall a GPU: a ``t`` outside (0, 1] gives what the
            formula does.
        RuntimeError: the named backend cannot run here, or a derivative does not exist; the message
            says why.

    Source: Distilled Decoding 2 (arXiv 2510.21003), Eq. 1.
    """
    top_k, top_p = teacher_checks.check_teacher(
        logits, codebook, uncond_logits, guidance_scale, top_k, top_p
    )
    lead = teacher_checks.check_tokens("x_t", x_t, logits, codebook)
    teacher_checks.check_noise_level(t)
    checks.check_choice("prediction", prediction, PREDICTIONS)
    check_reverse_mode("conditional_score", x_t, t, logits, codebook, uncond_logits, guidance_scale)
    dtype = checks.compute_dtype(x_t, t, logits, codebook)
    rows, vocabulary = list(logits.shape[:-1]), logits.shape[-1]
    t = teacher_checks.broadcast_rows("t", t, lead, logits, dtype)
    scale = teacher_checks.broadcast_rows("guidance_scale", guidance_scale, rows, logits, dtype)
    x_t = x_t.to(dtype)
    count, draws = scale.numel(), lead[-1] if len(lead) > len(rows) else 1
    x0 = torch.ops.dd2_fast.conditional_x0(
        x_t.reshape(count, draws, codebook.shape[1]),
        t.reshape(count, draws),
        logits.reshape(count, vocabulary),
        None if uncond_logits is None else uncond_logits.reshape(count, vocabulary),
        scale.reshape(count),
        codebook.to(dtype),
        top_k,
        top_p,
        checks.check_backend(backend),
    ).reshape(x_t.shape)
    return predict(x0, x_t, t, prediction)


def predict(x0: Tensor, x_t: Tensor, t: Tensor, prediction: str) -> Tensor:
    """The prediction that ``x0`` is at ``x_t [*, C]`` and ``t [*]``."""
    if prediction == "x0":
        return x0
    t = t[..., None]
    if prediction == "velocity":
        return (x_t - x0) / t
    return ((1 - t) * x0 - x_t) / (t * t)
