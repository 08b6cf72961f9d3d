"""Guidance and top-k / top-p filters in plain torch: the specification every backend follows."""

from __future__ import annotations

import torch
from torch import Tensor


def guided_logits(logits: Tensor, uncond_logits: Tensor | None, guidance_scale: Tensor) -> Tensor:
    """Classifier-free guidance ``l_uncond + s (l_cond - l_uncond)``.

    A code that either logit rules out (-inf) is out.

    Args:
        logits: conditional logits ``[R, V]``.
        uncond_logits: unconditional logits ``[R, V]``, or None for no guidance.
        guidance_scale: ``s``, one a row: ``[R]``.
    """
    if uncond_logits is None:
        return logits
    guided = torch.addcmul(uncond_logits, guidance_scale[:, None], logits - uncond_logits)
    excluded = (logits == -torch.inf) | (uncond_logits == -torch.inf)
    return guided.masked_fill(excluded, -torch.inf)


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits ``[R, V]`` with everything outside top-k, then top-p, set to -inf.

    top-k keeps every logit that is at least the k-th largest, so ties stay. top-p keeps a token
    iff the probability of the tokens strictly above it is less than p, so the largest always
    stays and equal logits share a fate. ``top_k=0`` and ``top_p=1.0`` are off.
    """
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p < 1.0:
        ordered = logits.sort(dim=-1, descending=True).values
        probabilities = ordered.softmax(dim=-1)
        mass_above = probabilities.cumsum(dim=-1) - probabilities
        kept = (mass_above < top_p).sum(dim=-1, keepdim=True).clamp(min=1)
        logits = logits.masked_fill(logits < ordered.gather(-1, kept - 1), -torch.inf)
    return logits
