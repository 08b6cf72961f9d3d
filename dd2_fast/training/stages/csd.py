"""Stage 2: one generator update by CSD with every K guidance updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...condition import Rows
from ...losses import (
    ImageRandom,
    TeacherScore,
    TimeDistribution,
    csd_loss,
    dd1_loss,
    draw_noisy,
    gts_loss,
)
from ...models import DD2Generator, DD2Guidance
from ..config import CsdConfig
from ..loop import Losses, Stage
from ..parallel import Parallel
from ..samples.draws import Source, draw_seed
from ..schedule import ramp, update_ema
from ..trained import Terms, Trained
from .guidance import GuidanceUpdates
from .inputs import pair_inputs

_GAP_EVERY = 50


class CsdStage(Stage):
    """Stage 2: K guidance updates, then one generator update by CSD (paper Eq. 4), then the EMA.

    With an auxiliary weight the noise comes from the pool, and the DD1 regression of its pairs is
    added with a weight that falls linearly to zero.
    """

    def __init__(
        self,
        name: str,
        steps: int,
        generator: DD2Generator,
        guidance: DD2Guidance,
        ema: DD2Generator,
        score: TeacherScore,
        pool: Source | None,
        config: CsdConfig,
        prepare: Callable[[], object] | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        super().__init__(name, steps, prepare, config.batch)
        self.generator, self.guidance, self.ema = generator, guidance, ema
        self.score, self.pool, self.config = score, pool, config
        self.parallel = parallel or Parallel(device=next(generator.parameters()).device)
        self.update = GuidanceUpdates(self, generator, guidance, config, self.parallel)
        self.times = TimeDistribution(config.generator_time_low, 1.0, config.generator_time_density)
        self.trained = {
            "guidance": self.update.trained,
            "generator": Trained(generator, self.parallel, config.betas),
        }

    def step(self, index: int, rng: torch.Generator) -> Losses:
        config, generator = self.config, self.trained["generator"]
        schedule: dict[str, Any] = dict(warmup=config.warmup, hold=config.hold)
        guidance_rate = config.guidance_rate * ramp(
            index, self.steps, floor=config.guidance_floor, **schedule
        )
        rate = config.generator_rate * ramp(index, self.steps, **schedule)
        for _ in range(config.guidance_updates - 1):
            self.update.on_fresh(guidance_rate, rng)
        auxiliary = config.auxiliary * (1 - index / self.steps)
        pool = self.pool if auxiliary > 0 else None
        inputs = self.update.fresh(rng) if pool is None else pair_inputs(pool, config.batch, rng)
        # A batch of one pass is generated once for both networks, one of several twice.
        once = len(self.parallel.parts(config.batch)) == 1
        kept: list[tuple[Tensor, Rows, Tensor | None]] = []

        def make(part: Tensor) -> tuple[Tensor, Rows, Tensor | None]:
            noise, labels, tokens = inputs(part)
            return self.seen(x=generator(noise, labels)), labels, tokens

        def generate(part: Tensor) -> tuple[Tensor, Rows]:
            with torch.set_grad_enabled(once):
                made = make(part)
            kept[:] = [made] if once else []
            return made[0].detach(), made[1]

        seed = 0

        def loss(part: Tensor) -> tuple[Tensor, Terms]:
            x, labels, tokens = kept.pop() if kept else make(part)
            random = ImageRandom(seed, part.to(x.device))
            total, terms = self._distillation(x, labels, random, index % _GAP_EVERY == 0)
            if tokens is not None:
                terms["dd1"] = dd1_loss(x, self.score.teacher.codebook[tokens]).mean()
                total = total + auxiliary * terms["dd1"]
            return total, terms

        fcs = self.update(generate, guidance_rate, rng)
        seed = draw_seed(rng)
        terms = generator.update("generator", rate, config.batch, loss)
        update_ema(self.ema, self.generator, index, config.ema_decay)
        return {**terms, **fcs}

    def _distillation(
        self, x: Tensor, labels: Rows, random: ImageRandom, measure: bool
    ) -> tuple[Tensor, Terms]:
        """The mean CSD loss; prefixes are detached. ``measure``: report the gap too."""
        config = self.config
        prefix = x.detach()
        distribution = self.score(prefix, labels)
        self.seen(logits=distribution.logits)
        with torch.no_grad(), self.parallel.autocast():
            features = self.seen(features=self.guidance.features(prefix, labels))
        sid = config.objective == "sid"
        self.guidance.requires_grad_(False)
        with torch.set_grad_enabled(sid), self.parallel.autocast():
            x_t, t, _ = draw_noisy(x, config.draws, self.times, random)
            fake_x0 = self.seen(fake_x0=self.guidance.x0(x_t, t, features))
        self.guidance.requires_grad_(True)
        loss = csd_loss(
            x,
            x_t,
            t,
            fake_x0,
            distribution,
            objective=config.objective,
            alpha=config.alpha,
            weight_power=config.weight_power,
        ).mean()
        terms = {"csd": loss}
        if measure:
            # |v_psi - v_teacher|^2 on generated tokens: stage 1's loss, zero at the end.
            with torch.no_grad():
                velocity = (x_t - fake_x0) / t[..., None]
                terms["gap"] = gts_loss(velocity, x_t, t, distribution).mean()
        return loss, terms
