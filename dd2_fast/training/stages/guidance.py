"""FCS: the guidance network follows what the generator makes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...condition import Rows
from ...losses import (
    ImageRandom,
    TimeDistribution,
    draw_noisy,
    fcs_loss,
)
from ...models import DD2Generator, DD2Guidance
from ..config import CsdConfig
from ..loop import Losses, Stage
from ..parallel import Parallel
from ..samples.draws import draw_seed
from ..schedule import ramp
from ..trained import Terms, Trained
from .inputs import Inputs, fresh_inputs

# Image numbers [m] of a part of a batch -> generated tokens [m, n, C] and their conditions.
Generate = Callable[[Tensor], tuple[Tensor, Rows]]


class GuidanceUpdates:
    """FCS updates (paper Eq. 5) of the guidance network on generated tokens."""

    def __init__(
        self,
        stage: Stage,
        generator: DD2Generator,
        guidance: DD2Guidance,
        config: CsdConfig,
        parallel: Parallel,
    ) -> None:
        self.stage, self.generator, self.config, self.parallel = stage, generator, config, parallel
        self.times = TimeDistribution(config.guidance_time_low)
        self.trained = Trained(guidance, parallel, config.betas)

    def __call__(self, generate: Generate, rate: float, rng: torch.Generator) -> Terms:
        """One update on what ``generate`` makes."""
        seed, config = draw_seed(rng), self.config

        def loss(part: Tensor) -> tuple[Tensor, Terms]:
            x, labels = generate(part)
            random = ImageRandom(seed, part.to(x.device))
            x_t, t, noise = draw_noisy(x, config.draws, self.times, random)
            velocity = self.stage.seen(velocity=self.trained(x_t, t, x, labels))
            value = fcs_loss(velocity, x, noise).mean()
            return value, {"fcs": value}

        return self.trained.update("guidance", rate, config.batch, loss)

    def on_fresh(self, rate: float, rng: torch.Generator) -> Terms:
        """One update on new images."""
        inputs = self.fresh(rng)

        def generate(part: Tensor) -> tuple[Tensor, Rows]:
            noise, labels, _ = inputs(part)
            with torch.no_grad(), self.parallel.autocast():
                return self.stage.seen(x=self.generator(noise, labels)), labels

        return self(generate, rate, rng)

    def fresh(self, rng: torch.Generator) -> Inputs:
        """New noise and random conditions for a batch."""
        return fresh_inputs(self.generator, self.config.batch, rng, self.parallel.device)


class GuidanceStage(Stage):
    """The guidance network alone, to catch up with a new generator or for alignment."""

    def __init__(
        self,
        name: str,
        steps: int,
        generator: DD2Generator,
        guidance: DD2Guidance,
        config: CsdConfig,
        prepare: Callable[[], object] | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        super().__init__(name, steps, prepare, config.batch)
        self.config = config
        parallel = parallel or Parallel(device=next(generator.parameters()).device)
        self.update = GuidanceUpdates(self, generator, guidance, config, parallel)
        self.trained = {"guidance": self.update.trained}

    def step(self, index: int, rng: torch.Generator) -> Losses:
        config = self.config
        rate = config.guidance_rate * ramp(index, self.steps, warmup=config.warmup, hold=1.0)
        return self.update.on_fresh(rate, rng)
