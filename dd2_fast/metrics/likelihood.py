"""Likelihood of tokens under an autoregressive teacher."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..ambient import outside_autocast


class Teacher(Protocol):
    """What the metrics need of a teacher."""

    def logits(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Return logits [B, n, V] of each token given those before it and the label."""
        ...


@torch.no_grad()
def negative_log_likelihood(
    teacher: Teacher, tokens: Tensor, labels: Tensor, *, batch_size: int = 512
) -> float:
    """Return the mean over images and tokens of ``-log p(q_i | q_<i, y)`` in nats.

    tokens [N, n] and labels [N] are int64; ``p`` is the teacher's conditional distribution without
    guidance and filters. Raises ValueError for other shapes or no tokens at all.
    """
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise ValueError(f"tokens: expected shape [N, n], not empty, got {list(tokens.shape)}")
    if labels.shape != tokens.shape[:1]:
        raise ValueError(f"labels: expected shape [{tokens.shape[0]}], got {list(labels.shape)}")
    total = 0.0
    with outside_autocast(tokens.device):
        for part, label in zip(tokens.split(batch_size), labels.split(batch_size), strict=True):
            log_p = teacher.logits(part, label).double().log_softmax(-1)
            total -= float(log_p.gather(-1, part[..., None]).sum())
    return total / tokens.numel()
