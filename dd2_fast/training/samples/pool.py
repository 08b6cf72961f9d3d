"""A pool of (noise, teacher sample) pairs: stage 1 learns from the samples, DD1 from the pairs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...condition import ClassCondition, Condition, Rows


class PairPool(nn.Module):
    """``noise [N, n, C]``, the ``tokens [N, n]`` that DD1's map gives it, and conditions: ``labels
    [N]`` if they are classes."""

    noise: Tensor
    tokens: Tensor

    def __init__(
        self, count: int, num_tokens: int, dimension: int, condition: Condition | None = None
    ) -> None:
        super().__init__()
        self.condition = condition or ClassCondition(1)
        self.register_buffer("noise", torch.zeros(count, num_tokens, dimension))
        self.register_buffer("tokens", torch.zeros(count, num_tokens, dtype=torch.int32))
        one = self.condition.random(1, torch.Generator())
        for name, tensor in self.condition.tensors(one).items():
            self.register_buffer(name, tensor.new_zeros(count, *tensor.shape[1:]))

    def __len__(self) -> int:
        return len(self.noise)

    def put(self, part: slice, noise: Tensor, tokens: Tensor, labels: Rows) -> None:
        """Take these pairs and their conditions in the place of a part."""
        values = {"noise": noise, "tokens": tokens.int(), **self.condition.tensors(labels)}
        for name, value in values.items():
            self.get_buffer(name)[part] = value

    def draw(self, size: int, rng: torch.Generator) -> Tensor:
        """int64 ``[size]``, which pairs make a random batch; :meth:`take` has them, or a part."""
        return torch.randint(len(self), (size,), generator=rng)

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor, Rows]:
        """``noise``, int64 ``tokens`` and conditions of the chosen pairs."""
        chosen = chosen.to(self.noise.device)
        labels = self.condition.of_tensors(dict(self.named_buffers()))
        return (
            self.noise[chosen],
            self.tokens[chosen].long(),
            self.condition.take(labels, chosen),
        )
