"""The categorical draw of a teacher: guidance, top-k, top-p, inverse of the distribution."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..ops.checks import check_filters
from ..ops.filtering import filter_logits, guided_logits

Choose = Callable[[int, Tensor, Tensor | None], Tensor]


def draw_tokens(
    uniform: Tensor,
    logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor | float,
    top_k: int,
    top_p: float,
) -> Tensor:
    """Tokens ``[B]`` of the guided, filtered ``logits [B, V]`` at ``uniform [B]`` in [0, 1)."""
    if uncond_logits is not None:
        scale = torch.as_tensor(guidance_scale, dtype=logits.dtype, device=logits.device)
        logits = guided_logits(logits, uncond_logits, scale.expand(logits.shape[0]))
    cumulative = filter_logits(logits, top_k, top_p).softmax(-1).cumsum(-1)
    threshold = (uniform * cumulative[:, -1])[:, None]
    drawn = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    return drawn.clamp(max=logits.shape[-1] - 1)


def categorical(
    labels: Tensor,
    num_tokens: int,
    guidance_scale: float,
    top_k: int,
    top_p: float,
    seed: int,
) -> Choose:
    """A ``choose(i, logits, uncond_logits)`` that draws, all uniforms fixed by the seed."""
    check_filters(top_k, top_p)
    rng = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(labels), num_tokens, generator=rng).to(labels.device)

    def choose(i: int, logits: Tensor, uncond_logits: Tensor | None) -> Tensor:
        return draw_tokens(uniform[:, i], logits, uncond_logits, guidance_scale, top_k, top_p)

    return choose
