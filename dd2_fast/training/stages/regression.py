"""DD1's regression of pairs, to initialise the generator or as the baseline."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...losses import (
    TeacherScore,
    dd1_loss,
)
from ...models import DD2Generator
from ..config import RegressionConfig
from ..loop import Losses, Stage
from ..parallel import Parallel
from ..samples.draws import Source
from ..schedule import ramp, update_ema
from ..trained import Terms, Trained


class RegressionStage(Stage):
    """DD1's regression ``G(eps) -> x_0`` over the pool: a start for the generator."""

    def __init__(
        self,
        generator: DD2Generator,
        score: TeacherScore,
        pool: Source,
        config: RegressionConfig,
        prepare: Callable[[], object] | None = None,
        parallel: Parallel | None = None,
        ema: DD2Generator | None = None,
        ema_decay: float = 0.9999,
        name: str = "regression",
    ) -> None:
        super().__init__(name, config.steps, prepare, config.batch)
        self.pool, self.config, self.score = pool, config, score
        self.generator, self.ema, self.ema_decay = generator, ema, ema_decay
        self.trained = {"generator": Trained(generator, parallel or Parallel(), config.betas)}

    def step(self, index: int, rng: torch.Generator) -> Losses:
        config, generator = self.config, self.trained["generator"]
        chosen = self.pool.draw(config.batch, rng)

        def loss(part: Tensor) -> tuple[Tensor, Terms]:
            noise, tokens, labels = self.pool.take(chosen[part])
            x = self.seen(x=generator(noise, labels))
            value = dd1_loss(x, self.score.teacher.codebook[tokens]).mean()
            return value, {"dd1": value}

        rate = config.rate * ramp(index, self.steps, warmup=config.warmup, hold=config.hold)
        terms = generator.update("generator", rate, config.batch, loss)
        if self.ema is not None:
            update_ema(self.ema, self.generator, index, self.ema_decay)
        return terms
