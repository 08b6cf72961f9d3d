"""A pool of (noise, teacher sample) pairs: stage 1 learns from the samples, DD1 from the pairs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PairPool(nn.Module):
    """``noise [N, n, C]``, the ``tokens [N, n]`` that DD1's map gives it, and ``labels [N]``."""

    noise: Tensor
    tokens: Tensor
    labels: Tensor

    def __init__(self, count: int, num_tokens: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("noise", torch.zeros(count, num_tokens, dimension))
        self.register_buffer("tokens", torch.zeros(count, num_tokens, dtype=torch.int32))
        self.register_buffer("labels", torch.zeros(count, dtype=torch.int64))

    def draw(self, size: int, rng: torch.Generator) -> Tensor:
        """int64 ``[size]``, which pairs make a random batch; :meth:`take` has them, or a part."""
        return torch.randint(len(self.labels), (size,), generator=rng)

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``noise``, int64 ``tokens`` and ``labels`` of the chosen pairs."""
        chosen = chosen.to(self.labels.device)
        return self.noise[chosen], self.tokens[chosen].long(), self.labels[chosen]
