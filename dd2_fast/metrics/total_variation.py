"""Total variation distance between sampled token sequences and a known joint distribution."""

from __future__ import annotations

import torch
from torch import Tensor


def total_variation(tokens: Tensor, joint: Tensor) -> float:
    """Return ``1/2 sum_q |count(q)/N - p(q)|`` over every token sequence q.

    tokens [N, n] is int64; joint has one axis of length V a token, [V, ..., V], and sums to 1.
    The estimate is biased upwards by the counts' own noise, about ``sum_q sqrt(p(q) / (2 pi N))``.
    Raises ValueError for shapes that do not match, no rows, or tokens outside 0..V-1.
    """
    if tokens.ndim != 2 or tokens.shape[0] == 0 or tokens.shape[1] != joint.ndim:
        raise ValueError(
            f"tokens: expected shape [N, {joint.ndim}] with N >= 1, got {list(tokens.shape)}"
        )
    device = tokens.device
    size = torch.tensor(joint.shape, device=device)
    if bool(((tokens < 0) | (tokens >= size)).any()):
        raise ValueError(
            f"tokens: expected values in 0..{min(joint.shape) - 1}, "
            f"got {int(tokens.min())} to {int(tokens.max())}"
        )
    sizes = [joint[(0,) * (i + 1)].numel() for i in range(joint.ndim)]
    flat = (tokens * torch.tensor(sizes, device=device)).sum(1)
    frequency = torch.bincount(flat, minlength=joint.numel()).double() / tokens.shape[0]
    return 0.5 * float((frequency - joint.reshape(-1).to(frequency)).abs().sum())
