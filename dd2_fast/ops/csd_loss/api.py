"""Public ``csd_loss``: validation and shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, teacher_checks
from ..derivatives import check_reverse_mode
from . import schema as schema

OBJECTIVES = ("sid", "dmd")
WEIGHTS = ("sid", "none")


def csd_loss(
    x: Tensor,
    x_t: Tensor,
    t: Tensor | float,
    fake_x0: Tensor,
    logits: Tensor,
    codebook: Tensor,
    *,
    uncond_logits: Tensor | None = None,
    guidance_scale: Tensor | float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    objective: str = "sid",
    alpha: float = 1.0,
    weight: str | Tensor = "sid",
    weight_power: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Conditional Score Distillation loss of a one-step generator, at every token, unreduced.

    With ``D = x0(x_t)`` the teacher's posterior mean (:func:`~dd2_fast.ops.conditional_score`) and
    ``F`` the guidance network's

        "sid"   w (D - F)·(D - x - alpha (D - F))   gradients in x, x_t (through D) and F
        "dmd"   w (F - D)·x                         F - D a constant, gradient in x alone

    ``weight`` is a constant: ``"sid"`` is ``w = mean_c|x - D| ** -weight_power``, the mean at least
    1e-5; ``"none"`` is 1. Value and gradients come from one pass over the logits in forward, and
    backward reads none; ``alpha`` other than 1 costs one more pass in backward. Nothing of the size
    of the logits is written. Differentiable once, in reverse mode.

    Args:
        x: generated tokens ``[*, C]``, also where there are draws.
        x_t: ``x`` noised, ``[*, C]``, or ``[*, M, C]`` for M draws that share a row of logits.
        t: noise level in (0, 1], 1 is pure noise; broadcasts to ``[*]`` or ``[*, M]``; a constant.
            The values of a tensor are not checked.
        fake_x0: ``F``, of the shape of ``x_t``.
        logits: the teacher's logits ``[*, V]``; a constant.
        codebook: code vectors ``[V, C]``; a constant.
        uncond_logits: unconditional logits ``[*, V]``; a constant. None: no guidance.
        guidance_scale: of the teacher, a number or broadcastable to ``[*]``; 1 is none; a constant.
        top_k: how many of the largest logits to keep; 0 keeps all.
        top_p: the probability mass to keep, in (0, 1]; 1.0 keeps all.
        objective: ``"sid"`` or ``"dmd"``.
        alpha: SiD's, 1 in the paper.
        weight: ``"sid"``, ``"none"`` or a tensor that broadcasts to the loss; a constant.
        weight_power: of ``"sid"``, any number; 1 is SiD's, less weighs far tokens less down, 0 is
            no weight, and below 0 far tokens weigh more.
        backend: a name in :func:`available_backends`, or None for the fastest that can run.

    Returns:
        The loss ``[*]``, or ``[*, M]`` with draws; float32, or float64 if an input is. A token
        whose ``D`` is NaN gives NaN.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value; the values of
            tensors are not read, as in :func:`~dd2_fast.ops.conditional_score`.
        RuntimeError: the named backend cannot run here, or a derivative does not exist; the message
            says why.

    Source: Distilled Decoding 2 (arXiv 2510.21003), Eq. 4; SiD (arXiv 2404.04057).
    """
    top_k, top_p = teacher_checks.check_teacher(
        logits, codebook, uncond_logits, guidance_scale, top_k, top_p
    )
    lead = teacher_checks.check_tokens("x_t", x_t, logits, codebook)
    rows, vocabulary = list(logits.shape[:-1]), logits.shape[-1]
    checks.check_tensor("x", x)
    checks.check_shape("x", x, [*rows, codebook.shape[1]], "[*, C], that of logits and codebook")
    checks.check_tensor("fake_x0", fake_x0)
    checks.check_shape("fake_x0", fake_x0, x_t.shape, "that of x_t")
    checks.check_same_device("logits", logits, x=x, fake_x0=fake_x0)
    teacher_checks.check_noise_level(t)
    checks.check_choice("objective", objective, OBJECTIVES)
    alpha = checks.check_number("alpha", alpha)
    weight_power = checks.check_number("weight_power", weight_power)
    teacher = (logits, codebook, uncond_logits, guidance_scale)
    check_reverse_mode("csd_loss", x, x_t, t, fake_x0, weight, *teacher)
    dtype = checks.compute_dtype(x, x_t, t, fake_x0, logits, codebook)
    alpha = checks.check_range("alpha", alpha, dtype)
    weight_power = checks.check_range("weight_power", weight_power, dtype)
    t = teacher_checks.broadcast_rows("t", t, lead, logits, dtype)
    scale = teacher_checks.broadcast_rows("guidance_scale", guidance_scale, rows, logits, dtype)
    factor = None
    if isinstance(weight, Tensor):
        checks.check_constant(weight=weight)
        factor = teacher_checks.broadcast_rows("weight", weight, lead, logits, dtype)
    elif weight not in WEIGHTS:
        raise ValueError(
            f"weight: expected one of {', '.join(map(repr, WEIGHTS))} or a tensor, got {weight!r}"
        )
    if objective == "dmd":
        x_t, fake_x0 = x_t.detach(), fake_x0.detach()
    count, draws = scale.numel(), lead[-1] if len(lead) > len(rows) else 1
    tokens = (count, draws, codebook.shape[1])
    loss, *_ = torch.ops.dd2_fast.csd_loss(
        x.to(dtype).reshape(count, codebook.shape[1]),
        fake_x0.to(dtype).reshape(tokens),
        None if factor is None else factor.reshape(count, draws),
        weight_power if factor is None and weight == "sid" else 0.0,
        objective,
        alpha,
        x_t.requires_grad and torch.is_grad_enabled(),
        x_t.to(dtype).reshape(tokens),
        t.reshape(count, draws),
        logits.reshape(count, vocabulary),
        None if uncond_logits is None else uncond_logits.reshape(count, vocabulary),
        scale.reshape(count),
        codebook.to(dtype),
        top_k,
        top_p,
        checks.check_backend(backend),
    )
    return loss.reshape(lead)
