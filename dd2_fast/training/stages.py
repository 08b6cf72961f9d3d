"""The DD2 stages over any teacher, generator and guidance network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..losses import (
    ImageRandom,
    TeacherScore,
    TimeDistribution,
    csd_loss,
    dd1_loss,
    draw_noisy,
    fcs_loss,
    gts_loss,
)
from ..models import DD2Generator, DD2Guidance
from .config import CsdConfig, RegressionConfig, Stage1Config
from .loop import Losses, Stage
from .parallel import Parallel
from .schedule import ramp, update_ema
from .trained import Terms, Trained

_GAP_EVERY = 50

# What a part of a batch is made from: its image numbers [m] -> noise [m, n, C], labels [m] and,
# for noise that comes from pairs, the tokens [m, n] that DD1's map gives it.
Inputs = Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]
# The same -> generated tokens [m, n, C] and their labels.
Generate = Callable[[Tensor], tuple[Tensor, Tensor]]


def draw_seed(rng: torch.Generator) -> int:
    """A seed for the random numbers of one batch."""
    return int(torch.randint(2**62, (), generator=rng))


class GroundTruthScoreStage(Stage):
    """Stage 1 (paper Eq. 6) on teacher samples: the head alone first, then everything."""

    def __init__(
        self,
        guidance: DD2Guidance,
        score: TeacherScore,
        pool: Any,
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

    def _velocity(
        self, head_only: bool, x_t: Tensor, t: Tensor, x: Tensor, labels: Tensor
    ) -> Tensor:
        if not head_only:
            return self.trained["all"](x_t, t, x, labels)
        with torch.no_grad(), self.parallel.autocast():
            features = self.guidance.features(x, labels)
        return self.trained["head"](x_t, t, features)


class RegressionStage(Stage):
    """DD1's regression ``G(eps) -> x_0`` over the pool: a start for the generator."""

    def __init__(
        self,
        generator: DD2Generator,
        score: TeacherScore,
        pool: Any,
        config: RegressionConfig,
        prepare: Callable[[], object] | None = None,
        parallel: Parallel | None = None,
        ema: DD2Generator | None = None,
        ema_decay: float = 0.9999,
    ) -> None:
        super().__init__("regression", config.steps, prepare, config.batch)
        self.pool, self.config, self.codebook = pool, config, score.teacher.codebook
        self.generator, self.ema, self.ema_decay = generator, ema, ema_decay
        self.trained = {"generator": Trained(generator, parallel or Parallel(), config.betas)}

    def step(self, index: int, rng: torch.Generator) -> Losses:
        config, generator = self.config, self.trained["generator"]
        chosen = self.pool.draw(config.batch, rng)

        def loss(part: Tensor) -> tuple[Tensor, Terms]:
            noise, tokens, labels = self.pool.take(chosen[part])
            x = self.seen(x=generator(noise, labels))
            value = dd1_loss(x, self.codebook[tokens]).mean()
            return value, {"dd1": value}

        rate = config.rate * ramp(index, self.steps, warmup=config.warmup, hold=config.hold)
        terms = generator.update("generator", rate, config.batch, loss)
        if self.ema is not None:
            update_ema(self.ema, self.generator, index, self.ema_decay)
        return terms


class _GuidanceUpdates:
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

        def generate(part: Tensor) -> tuple[Tensor, Tensor]:
            noise, labels, _ = inputs(part)
            with torch.no_grad(), self.parallel.autocast():
                return self.stage.seen(x=self.generator(noise, labels)), labels

        return self(generate, rate, rng)

    def fresh(self, rng: torch.Generator) -> Inputs:
        """New noise and uniform labels for a batch."""
        generator, device = self.generator, self.parallel.device
        every = torch.randint(generator.num_classes, (self.config.batch,), generator=rng)
        seed = draw_seed(rng)

        def inputs(part: Tensor) -> tuple[Tensor, Tensor, None]:
            random = ImageRandom(seed, part.to(device))
            noise = random.normal(generator.num_tokens, generator.dimension)
            return noise, every[part].to(device), None

        return inputs


class GuidanceStage(Stage):
    """The guidance network alone, to catch up with a new generator (also: alignment)."""

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
        self.update = _GuidanceUpdates(self, generator, guidance, config, parallel)
        self.trained = {"guidance": self.update.trained}

    def step(self, index: int, rng: torch.Generator) -> Losses:
        config = self.config
        rate = config.guidance_rate * ramp(index, self.steps, warmup=config.warmup, hold=1.0)
        return self.update.on_fresh(rate, rng)


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
        pool: Any,
        config: CsdConfig,
        prepare: Callable[[], object] | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        super().__init__(name, steps, prepare, config.batch)
        self.generator, self.guidance, self.ema = generator, guidance, ema
        self.score, self.pool, self.config = score, pool, config
        self.parallel = parallel or Parallel(device=next(generator.parameters()).device)
        self.update = _GuidanceUpdates(self, generator, guidance, config, self.parallel)
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
        auxiliary = config.auxiliary * (1 - index / self.steps) if self.pool is not None else 0.0
        inputs = self._pairs(rng) if auxiliary > 0 else self.update.fresh(rng)
        # A batch of one pass is generated once for both networks, one of several twice.
        once = len(self.parallel.parts(config.batch)) == 1
        kept: list[tuple[Tensor, Tensor, Tensor | None]] = []

        def make(part: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            noise, labels, tokens = inputs(part)
            return self.seen(x=generator(noise, labels)), labels, tokens

        def generate(part: Tensor) -> tuple[Tensor, Tensor]:
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

    def _pairs(self, rng: torch.Generator) -> Inputs:
        chosen = self.pool.draw(self.config.batch, rng)

        def inputs(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            noise, tokens, labels = self.pool.take(chosen[part])
            return noise, labels, tokens

        return inputs

    def _distillation(
        self, x: Tensor, labels: Tensor, random: ImageRandom, measure: bool
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
