"""``small_teacher``: validation."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, teacher_checks
from ..small_network import MOST_TOKENS, PANEL, WIDEST, TeacherSizes
from . import schema as schema

_small_teacher = torch.ops.dd2_fast.small_teacher.default


def small_teacher(
    tokens: Tensor,
    labels: Tensor,
    index: Tensor,
    seeds: Tensor,
    weights: Tensor,
    codebook: Tensor,
    sizes: TeacherSizes,
    *,
    prefix: int = 0,
    guidance_scale: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Codes [B, n] of a small autoregressive teacher, drawn step by step as `sample_code` draws
    them, in one call.

    Args:
        tokens: int64 [B, n], of which the first `prefix` are kept, codes that are not checked.
        labels: int64 [B], in 0..classes-2, which is not checked; classes-1 is the null class.
        index: int64 [B], the images' numbers under the seeds.
        seeds: int64 [n], one a step, or [B, n], one a step of each image.
        weights: of backbone and classifier, packed. codebook: [V, C] in their dtype.
        sizes: of the backbone.
        guidance_scale: `s` of ``l_uncond + s (l_cond - l_uncond)``; 1: none.
        top_k, top_p: filters, as of `sample_code`.
        backend: a name in `available_backends`, or None for the fastest that can run.

    From the first step on whose logits were not finite an image's codes are -1. Raises TypeError or
    ValueError for arguments that do not fit one another, or sizes over the kernels' limits.
    """
    for name, value in (("tokens", tokens), ("labels", labels), ("index", index), ("seeds", seeds)):
        checks.check_tensor(name, value, (torch.int64,))
    if tokens.ndim != 2 or not 0 < tokens.shape[1] <= MOST_TOKENS:
        raise ValueError(
            f"tokens: expected shape [B, n] with n in 1..{MOST_TOKENS}, got {list(tokens.shape)}"
        )
    batch, length = tokens.shape
    for name, value in (("labels", labels), ("index", index)):
        checks.check_shape(name, value, (batch,), "[B], that of tokens")
    steps = (length,) if seeds.ndim == 1 else (batch, length)
    checks.check_shape("seeds", seeds, steps, "[n] or [B, n], that of tokens")
    checks.check_tensor("weights", weights)
    checks.check_tensor("codebook", codebook, (weights.dtype,))
    checks.check_same_device(
        "tokens", tokens, labels=labels, index=index, seeds=seeds, weights=weights,
        codebook=codebook,
    )  # fmt: skip
    if codebook.ndim != 2 or codebook.shape[0] < 1 or not 0 < codebook.shape[1] <= WIDEST:
        raise ValueError(
            f"codebook: expected shape [V, C] with C in 1..{WIDEST}, got {list(codebook.shape)}"
        )
    width, heads = sizes.width, sizes.heads
    if not 0 < width <= WIDEST or heads < 1 or width % (heads * PANEL):
        raise ValueError(
            f"sizes: expected a width up to {WIDEST}, a multiple of {PANEL} for each head, got "
            f"{width} for {heads} heads"
        )
    size = sizes.length(length, codebook.shape[1], codebook.shape[0])
    checks.check_shape("weights", weights, (size,), "as sizes say")
    if not 0 <= prefix <= length:
        raise ValueError(f"prefix: expected 0..{length}, got {prefix}")
    top_k, top_p = teacher_checks.check_filters(top_k, top_p)
    scale = checks.check_number("guidance_scale", guidance_scale)
    return _small_teacher(
        tokens, labels, index, seeds, weights, codebook, sizes, prefix, scale, top_k, top_p,
        checks.check_backend(backend),
    )  # fmt: skip
