"""Public ``logit_distillation_loss``: validation and shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, teacher_checks
from ..derivatives import check_reverse_mode
from . import schema as schema


def logit_distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    *,
    uncond_logits: Tensor | None = None,
    guidance_scale: Tensor | float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Divergence of a student's distribution from a teacher's, at every token, unreduced.

        L = KL(p | q) = sum_j p_j (log p_j - log q_j),    dL/dlogits = q - p

    in nats, where ``q = softmax(logits)`` is the student's over all codes and ``p`` the teacher's
    sampling distribution: classifier-free guidance ``l = l_uncond + s (l_cond - l_uncond)``, then
    top-k (ties stay), then top-p (a code stays iff the mass strictly above it is less than p). A
    code with ``p_j = 0`` adds nothing, also where ``q_j`` is 0.

    Every row of logits is read from memory once in forward, where five numbers a row are kept, and
    once in backward, which writes the gradient: nothing else is of the size of the logits.
    Differentiable in ``logits``, once, in reverse mode.

    Args:
        logits: the student's ``[*, V]``.
        teacher_logits: the teacher's ``[*, V]``, of any float dtype; a constant.
        uncond_logits: its unconditional logits ``[*, V]``; a constant. None: no guidance.
        guidance_scale: ``s``, a number or broadcastable to ``[*]``; 1 is none; a constant.
        top_k: how many of the teacher's largest logits to keep; 0 keeps all.
        top_p: the probability mass to keep, in (0, 1]; 1.0 keeps all.
        backend: a name in :func:`available_backends`, or None for the fastest that can run.

    Returns:
        The loss ``[*]``; float32, or float64 if an input is. Infinite where a kept code's logit is
        -inf in ``logits``. NaN, as the row's gradient, where the teacher's row has no code left or
        a NaN or +inf in its guided logits, or the student's no finite logit or a NaN or +inf.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value; the values of
            tensors are not read, which would stall a GPU.
        RuntimeError: the named backend cannot run here, or a derivative does not exist; the message
            says why.

    Source: Distilling the Knowledge in a Neural Network (arXiv 1503.02531).
    """
    checks.check_tensor("logits", logits)
    top_k, top_p = teacher_checks.check_logits(
        teacher_logits, uncond_logits, guidance_scale, top_k, top_p, name="teacher_logits"
    )
    checks.check_shape("logits", logits, teacher_logits.shape, "that of teacher_logits")
    checks.check_same_device("teacher_logits", teacher_logits, logits=logits)
    check_reverse_mode(
        "logit_distillation_loss", logits, teacher_logits, uncond_logits, guidance_scale
    )
    dtype = checks.compute_dtype(logits, teacher_logits)
    lead, vocabulary = logits.shape[:-1], logits.shape[-1]
    scale = teacher_checks.broadcast_rows("guidance_scale", guidance_scale, lead, logits, dtype)
    count = scale.numel()
    loss, _ = torch.ops.dd2_fast.logit_distillation_loss(
        logits.reshape(count, vocabulary),
        teacher_logits.reshape(count, vocabulary),
        None if uncond_logits is None else uncond_logits.reshape(count, vocabulary),
        scale.reshape(count),
        top_k,
        top_p,
        checks.check_backend(backend),
    )
    return loss.reshape(lead)
