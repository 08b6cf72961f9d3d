"""What a batch of a stage is made from: fresh noise, or pairs of noise and tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...condition import Rows, condition_of
from ...losses import ImageRandom
from ...models.network import BackboneNetwork
from ..samples.draws import Source, draw_seed

# Of a part of a batch: its image numbers [m] -> noise [m, n, C], conditions and, for noise that
# comes from pairs, the tokens [m, n] that DD1's map gives it.
Inputs = Callable[[Tensor], tuple[Tensor, Rows, Tensor | None]]


def fresh_inputs(
    network: BackboneNetwork, batch: int, rng: torch.Generator, device: torch.device
) -> Inputs:
    """New noise for a one-step network, and random conditions."""
    condition = condition_of(network)
    every = condition.random(batch, rng)
    seed = draw_seed(rng)
    shape = network.num_tokens, network.dimension

    def inputs(part: Tensor) -> tuple[Tensor, Rows, None]:
        random = ImageRandom(seed, part.to(device))
        return random.normal(*shape), condition.to(condition.take(every, part), device), None

    return inputs


def pair_inputs(pool: Source, batch: int, rng: torch.Generator) -> Inputs:
    """Noise, conditions and tokens of random pairs."""
    chosen = pool.draw(batch, rng)

    def inputs(part: Tensor) -> tuple[Tensor, Rows, Tensor]:
        noise, tokens, labels = pool.take(chosen[part])
        return noise, labels, tokens

    return inputs
