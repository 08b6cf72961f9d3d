"""Perceptual path length in noise space: how smoothly images follow the noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ambient import outside_autocast
from ..models.family import Student
from .evaluation_mode import evaluation_mode, submodules


@torch.no_grad()
def perceptual_path_length(
    model: Student,
    labels: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor],
    *,
    seed: int = 0,
    epsilon: float = 1e-4,
    batch_size: int = 64,
) -> float:
    """Return the mean over labels of ``d(G(z_s), G(z_(s+epsilon))) / epsilon^2``.

    ``z_s`` is the spherical interpolation of two noises of the same label at a uniform ``s``; both
    ends of the pair are decoded images [B, 3, H, W] in [0, 1]. Everything is fixed by the seed.

    Args:
        model: a one-step generator with its tokenizer, `generator(noise [B, n, C], labels)`.
        labels: int64 [N].
        distance: squared perceptual distance [B] of two batches of images, LPIPS for instance.
        epsilon: length of the step, above 0. batch_size: pairs at a time.

    Source: Karras et al., A style-based generator architecture (arXiv 1812.04948).
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon: expected above 0, got {epsilon}")
    if labels.dtype != torch.int64 or labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"labels: expected int64 [N], N at least 1, got {labels.dtype} {list(labels.shape)}"
        )
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError("model: expected one with its tokenizer attached, got one without")
    codebook = tokenizer.codebook
    shape = (2, model.num_tokens, codebook.shape[1])
    rng: dict[str, Any] = dict(
        generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu"
    )
    share = torch.rand(len(labels), **rng)
    total = 0.0
    modules = submodules(model, tokenizer)
    with evaluation_mode(modules), outside_autocast(codebook.device):
        for first in range(0, len(labels), batch_size):
            y = labels[first : first + batch_size].to(codebook.device)
            # A pair at a time: the numbers do not depend on the batch size.
            pairs = torch.stack([torch.randn(shape, **rng) for _ in y], dim=1)
            start, end = pairs.to(codebook.device)
            s = share[first : first + len(y)].to(codebook.device)
            images = [
                tokenizer.decode(model(_slerp(start, end, at).to(codebook.dtype), y))
                for at in (s, s + epsilon)
            ]
            total += float((distance(*images).double() / epsilon**2).sum())
    return total / len(labels)


def _slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Points [B, n, C] at the shares [B] of the arcs from a to b, lengths interpolated."""
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    share = share.double()[:, None]
    length_a, length_b = (v.norm(dim=-1, keepdim=True) for v in (flat_a, flat_b))
    unit_a, unit_b = flat_a / length_a, flat_b / length_b
    angle = (unit_a * unit_b).sum(-1, keepdim=True).clamp(-1, 1).acos()
    direction = ((1 - share) * angle).sin() * unit_a + (share * angle).sin() * unit_b
    length = torch.lerp(length_a, length_b, share)
    points: Tensor = (direction / angle.sin() * length).reshape(a.shape).to(a.dtype)
    return points
