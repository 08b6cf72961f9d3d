"""Stage 1: the guidance network learns the teacher's analytic velocity."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...condition import Rows
from ...losses import (
    ImageRandom,
    TeacherScore,
    TimeDistribution,
    draw_noisy,
    fcs_loss,
    gts_loss,
)
from ...models import DD2Guidance
from ..config import Stage1Config
from ..loop import Losses, Stage
from ..parallel import Parallel
from ..samples.draws import Source, draw_seed
from ..schedule import ramp
from ..trained import Terms, Trained


class GroundTruthScoreStage(Stage):
    """Stage 1 (paper Eq. 6) on teacher samples: the head alone first, then everything."""

    def __init__(
        self,
        guidance: DD2Guidance,
        score: TeacherScore,
        pool: Source,
        config: Stage1Config,
        prepare: Callable[[], object] | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        super().__init__("stage1", config.head_steps + config.steps, prepare, config.batch)
        self.guidance, self.score, self.pool, self.config = guidance, score, pool, config
        self.parallel = parallel or Parallel()
        self.times = TimeDistribution(config.time_low)
        self.trained = {
            "head": Trained(guidance.head, self.parallel, config.betas),
            "all": Trained(guidance, self.parallel, config.betas),
        }

    def step(self, index: int, rng: torch.Generator) -> Losses:
        config = self.config
        head_only = index < config.head_steps
        done, steps, hold = index, config.head_steps, 1.0
        if not head_only:
            done, steps, hold = index - config.head_steps, config.steps, config.hold
        rate = config.rate * ramp(done, steps, warmup=config.warmup, hold=hold)
        chosen, seed = self.pool.draw(config.batch, rng), draw_seed(rng)

        def loss(part: Tensor) -> tuple[Tensor, Terms]:
            *_, tokens, labels = self.pool.take(chosen[part])
            x = self.seen(x=self.score.teacher.codebook[tokens])
            random = ImageRandom(seed, part.to(x.device))
            x_t, t, noise = draw_noisy(x, config.draws, self.times, random)
            velocity = self.seen(velocity=self._velocity(head_only, x_t, t, x, labels))
            if config.target == "sample":
                value = fcs_loss(velocity, x, noise).mean()
            else:
                distribution = self.score(tokens, labels)
                self.seen(logits=distribution.logits)
                value = gts_loss(velocity, x_t, t, distribution).mean()
            return value, {"gts": value}

        return self.trained["head" if head_only else "all"].update(
            "guidance", rate, config.batch, loss
        )

    def _velocity(self, head_only: bool, x_t: Tensor, t: Tensor, x: Tensor, labels: Rows) -> Tensor:
        if not head_only:
            return self.trained["all"](x_t, t, x, labels)
        with torch.no_grad(), self.parallel.autocast():
            features = self.guidance.features(x, labels)
        return self.trained["head"](x_t, t, features)
