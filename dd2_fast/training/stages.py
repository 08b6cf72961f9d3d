"""The DD2 stages over any teacher, generator and guidance network (METHOD 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..losses import (
    TeacherScore,
    TimeDistribution,
    csd_loss,
    dd1_loss,
    draw_noisy,
    fcs_loss,
    gts_loss,
)
from ..models import DD2Generator, DD2Guidance
from .config import DistillConfig, RegressionConfig, Stage1Config
from .loop import Losses, Stage
from .pairs import PairPool
from .schedule import adam, ramp, set_rate, update_ema


class GroundTruthScoreStage(Stage):
    """Stage 1 (paper Eq. 6) on teacher samples: the head alone first, then everything."""

    def __init__(
        self,
        guidance: DD2Guidance,
        score: TeacherScore,
        pool: PairPool,
        config: Stage1Config,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        super().__init__("stage1", config.head_steps + config.steps, prepare)
        self.guidance, self.score, self.pool, self.config = guidance, score, pool, config
        self.times = TimeDistribution(config.time_low)
        self.optimizers = {
            "head": adam(guidance.head, config.rate, (0.9, 0.95)),
            "all": adam(guidance, config.rate, (0.9, 0.95)),
        }

    def step(self, index: int, rng: torch.Generator) -> Losses:
        config, guidance = self.config, self.guidance
        head_only = index < config.head_steps
        optimizer = self.optimizers["head" if head_only else "all"]
        done, steps = (
            (index, config.head_steps) if head_only else (index - config.head_steps, config.steps)
        )
        hold = 1.0 if head_only else 0.5
        set_rate(optimizer, config.rate * ramp(done, steps, warmup=20, hold=hold))
        _, tokens, labels = self.pool.batch(config.batch, rng)
        x = self.score.teacher.codebook[tokens]
        x_t, t, _ = draw_noisy(x, config.draws, self.times, rng)
        with torch.set_grad_enabled(not head_only):
            features = guidance.features(x, labels)
        velocity = guidance.head(x_t, t, features)
        loss = gts_loss(velocity, x_t, t, self.score(tokens, labels)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"gts": loss.detach()}


class RegressionStage(Stage):
    """DD1's regression ``G(eps) -> x_0`` over the pool: a start for the generator."""

    def __init__(
        self,
        generator: DD2Generator,
        score: TeacherScore,
        pool: PairPool,
        config: RegressionConfig,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        super().__init__("regression", config.steps, prepare)
        self.generator, self.pool, self.config = generator, pool, config
        self.teacher = score.teacher
        self.optimizers = {"generator": adam(generator, config.rate, (0.9, 0.95))}

    def step(self, index: int, rng: torch.Generator) -> Losses:
        config, optimizer = self.config, self.optimizers["generator"]
        set_rate(optimizer, config.rate * ramp(index, self.steps, warmup=20))
        noise, tokens, labels = self.pool.batch(config.batch, rng)
        x = self.generator(noise, labels)
        loss = dd1_loss(x, self.teacher.codebook[tokens]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"dd1": loss.detach()}


class GuidanceUpdate:
    """One FCS update (paper Eq. 5) of the guidance network on generated tokens."""

    def __init__(self, guidance: DD2Guidance, config: DistillConfig) -> None:
        self.guidance, self.draws = guidance, config.draws
        self.times = TimeDistribution(config.guidance_time_low)
        self.optimizer = adam(guidance, config.guidance_rate, config.betas)

    def __call__(self, x: Tensor, labels: Tensor, rate: float, rng: torch.Generator) -> Tensor:
        """The mean loss on ``x [B, n, C]``, a constant."""
        set_rate(self.optimizer, rate)
        x_t, t, noise = draw_noisy(x, self.draws, self.times, rng)
        velocity = self.guidance.head(x_t, t, self.guidance.features(x, labels))
        loss = fcs_loss(velocity, x, noise).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class GuidanceStage(Stage):
    """The guidance network alone, to catch up with a new generator (also: alignment)."""

    def __init__(
        self,
        name: str,
        steps: int,
        generator: DD2Generator,
        guidance: DD2Guidance,
        config: DistillConfig,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(name, steps, prepare)
        self.generator, self.config = generator, config
        self.update = GuidanceUpdate(guidance, config)
        self.optimizers = {"guidance": self.update.optimizer}

    def step(self, index: int, rng: torch.Generator) -> Losses:
        config = self.config
        noise, labels = _fresh(self.generator, config.batch, rng)
        with torch.no_grad():
            x = self.generator(noise, labels)
        rate = config.guidance_rate * ramp(index, self.steps, warmup=config.warmup, hold=1.0)
        return {"fcs": self.update(x, labels, rate, rng)}


class DistillStage(Stage):
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
        pool: PairPool | None,
        config: DistillConfig,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(name, steps, prepare)
        self.generator, self.guidance, self.ema = generator, guidance, ema
        self.score, self.pool, self.config = score, pool, config
        self.update = GuidanceUpdate(guidance, config)
        self.times = TimeDistribution(config.generator_time_low, 1.0, config.generator_time_density)
        self.optimizers = {
            "guidance": self.update.optimizer,
            "generator": adam(generator, config.generator_rate, config.betas),
        }

    def step(self, index: int, rng: torch.Generator) -> Losses:
        config = self.config
        rate = config.guidance_rate * ramp(
            index, self.steps, warmup=config.warmup, floor=config.guidance_floor
        )
        for _ in range(config.guidance_updates - 1):
            noise, labels = _fresh(self.generator, config.batch, rng)
            with torch.no_grad():
                x = self.generator(noise, labels)
            self.update(x, labels, rate, rng)
        auxiliary = config.auxiliary * (1 - index / self.steps) if self.pool is not None else 0.0
        target: Tensor | None = None
        if self.pool is not None and auxiliary > 0:
            noise, tokens, labels = self.pool.batch(config.batch, rng)
            target = self.score.teacher.codebook[tokens]
        else:
            noise, labels = _fresh(self.generator, config.batch, rng)
        x = self.generator(noise, labels)
        losses = {"fcs": self.update(x.detach(), labels, rate, rng)}
        distilled = self._distillation(x, labels, rng)
        total = distilled
        if target is not None:
            regression = dd1_loss(x, target).mean()
            losses["dd1"] = regression.detach()
            total = total + auxiliary * regression
        optimizer = self.optimizers["generator"]
        set_rate(optimizer, config.generator_rate * ramp(index, self.steps, warmup=config.warmup))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        update_ema(self.ema, self.generator, index, config.ema_decay)
        return {"csd": distilled.detach(), **losses}

    def _distillation(self, x: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """The mean CSD loss; prefixes are detached."""
        config = self.config
        prefix = x.detach()
        distribution = self.score(prefix, labels)
        with torch.no_grad():
            features = self.guidance.features(prefix, labels)
        sid = config.objective == "sid"
        self.guidance.requires_grad_(False)
        with torch.set_grad_enabled(sid):
            x_t, t, _ = draw_noisy(x, config.draws, self.times, rng)
            fake_x0 = self.guidance.x0(x_t, t, features)
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
        )
        return loss.mean()


def _fresh(generator: DD2Generator, batch: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """New noise ``[B, n, C]`` and uniform labels ``[B]`` on the generator's device."""
    device = next(generator.parameters()).device
    noise = torch.randn(batch, generator.num_tokens, generator.dimension, generator=rng)
    labels = torch.randint(generator.num_classes, (batch,), generator=rng)
    return noise.to(device), labels.to(device)
