"""Public ``linear_conditional_score``: validation and shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks, teacher_checks
from ..conditional_score.api import PREDICTIONS, predict
from ..derivatives import check_reverse_mode
from . import schema as schema


def linear_conditional_score(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_t: Tensor,
    t: Tensor | float,
    codebook: Tensor,
    *,
    uncond_hidden: Tensor | None = None,
    guidance_scale: Tensor | float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    prediction: str = "score",
    backend: str | None = None,
) -> Tensor:
    """:func:`conditional_score` of a linear head's logits, which never exist all at once.

    The teacher's logits are ``hidden @ weight.T + bias``, formed in the dtype of ``hidden``: torch
    computes a chunk of rows, :func:`conditional_score` consumes it, and the next chunk overwrites
    it. It saves memory, not arithmetic or time; the backward pass in ``x_t`` forms the logits
    again. The result is that of the two steps apart, up to rounding in the head, where torch may
    sum in another order for another number of rows.

    Args:
        hidden: the input of the teacher's head ``[*, D]``; a constant.
        weight: the head's weight ``[V, D]`` in the dtype of ``hidden``; a constant.
        bias: the head's bias ``[V]`` in the dtype of ``hidden``, or None; a constant.
        x_t: noisy tokens ``[*, C]``, or ``[*, M, C]`` for M draws that share a row of logits.
        t: noise level in (0, 1], 1 is pure noise; broadcasts to ``[*]`` or ``[*, M]``; a constant.
            The values of a tensor are not checked.
        codebook: code vectors ``[V, C]``; a constant.
        uncond_hidden: the head's input without the condition ``[*, D]``; a constant. None: no
            guidance.
        guidance_scale: a number or broadcastable to ``[*]``; 1 is none; a constant.
        top_k: how many of the largest logits to keep; 0 keeps all.
        top_p: the probability mass to keep, in (0, 1]; 1.0 keeps all.
        prediction: ``"score"``, ``"x0"`` or ``"velocity"``.
        backend: the backend of ``conditional_score``, a name in :func:`available_backends`, or None
            for the fastest that can run.

    Returns:
        The prediction, of the shape of ``x_t``; float32, or float64 if an input is. Differentiable
        once, in reverse mode, in ``x_t``.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value; the values of
            tensors are not read, as in :func:`conditional_score`.
        RuntimeError: the named backend cannot run here, or a derivative does not exist; the message
            says why.

    Source: Distilled Decoding 2 (arXiv 2510.21003), Eq. 1; chunks of the head's rows as in the
    fused linear cross-entropy of Liger Kernel (arXiv 2410.10989).
    """
    _check_head(hidden, weight, bias, uncond_hidden)
    teacher_checks.check_guidance(guidance_scale, "uncond_hidden", uncond_hidden)
    top_k, top_p = teacher_checks.check_filters(top_k, top_p)
    teacher_checks.check_codebook(codebook, weight.shape[0], "weight", weight)
    lead = teacher_checks.check_tokens("x_t", x_t, hidden, codebook, "hidden")
    teacher_checks.check_noise_level(t)
    checks.check_choice("prediction", prediction, PREDICTIONS)
    teacher = (hidden, weight, bias, codebook, uncond_hidden, guidance_scale)
    check_reverse_mode("linear_conditional_score", x_t, t, *teacher)
    dtype = checks.compute_dtype(x_t, t, hidden, codebook)
    rows, width = list(hidden.shape[:-1]), hidden.shape[-1]
    t = teacher_checks.broadcast_rows("t", t, lead, hidden, dtype, "hidden")
    scale = teacher_checks.broadcast_rows(
        "guidance_scale", guidance_scale, rows, hidden, dtype, "hidden"
    )
    x_t = x_t.to(dtype)
    count, draws = scale.numel(), lead[-1] if len(lead) > len(rows) else 1
    x0 = torch.ops.dd2_fast.linear_conditional_x0(
        x_t.reshape(count, draws, codebook.shape[1]),
        t.reshape(count, draws),
        hidden.reshape(count, width),
        None if uncond_hidden is None else uncond_hidden.reshape(count, width),
        weight,
        bias,
        scale.reshape(count),
        codebook.to(dtype),
        top_k,
        top_p,
        checks.check_backend(backend),
    ).reshape(x_t.shape)
    return predict(x0, x_t, t, prediction)


def _check_head(hidden: Any, weight: Any, bias: Any, uncond_hidden: Any) -> None:
    checks.check_tensor("hidden", hidden)
    if hidden.ndim < 1 or hidden.shape[-1] < 1:
        raise ValueError(f"hidden: expected shape [*, D] with D >= 1, got {list(hidden.shape)}")
    checks.check_tensor("weight", weight, (hidden.dtype,))
    width = hidden.shape[-1]
    if weight.ndim != 2 or weight.shape[0] < 1 or weight.shape[1] != width:
        raise ValueError(
            f"weight: expected shape [V, D] with V >= 1 and D = {width} (from hidden), "
            f"got {list(weight.shape)}"
        )
    if bias is not None:
        checks.check_tensor("bias", bias, (hidden.dtype,))
        checks.check_shape("bias", bias, weight.shape[:1], "one a row of weight")
    if uncond_hidden is not None:
        checks.check_tensor("uncond_hidden", uncond_hidden, (hidden.dtype,))
        checks.check_shape("uncond_hidden", uncond_hidden, hidden.shape, "that of hidden")
    others = {"weight": weight, "bias": bias, "uncond_hidden": uncond_hidden}
    checks.check_same_device("hidden", hidden, **others)
    checks.check_constant(hidden=hidden, **others)
