"""The stages of a logit student."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ...losses import TeacherScore
from ..loop import Stage
from ..parallel import Parallel
from ..samples.draws import Source
from ..stages import LogitStage, PairsStage
from .networks import Networks
from .teachers import open_samples

if TYPE_CHECKING:
    from .distil import DistilConfig


def logit_stages(config: DistilConfig, networks: Networks, parallel: Parallel) -> list[Stage]:
    """DD1's pairs, where they are drawn before; the student at their tokens, then at its own."""
    settings = config.logits
    score = TeacherScore(networks.teacher, **dataclasses.asdict(config.score))
    stages: list[Stage] = []
    pool: Source | None = networks.pool
    if networks.pool is not None:
        stages.append(PairsStage(networks.pool, score, settings.pair_batch, config.ode_steps))
    elif settings.pair_steps:
        samples = TeacherScore(networks.teacher, **dataclasses.asdict(config.samples))
        options: dict[str, Any] = dict(ode_steps=config.ode_steps, device=parallel.device)
        pool = open_samples(config.source.data, samples, pairs=True, **options)

    def stage(name: str, steps: int, rate: float, pool: Source | None) -> Stage:
        student, ema = networks.generator, networks.ema
        return LogitStage(
            name, steps, rate, student, ema, score, pool, settings, networks.freeze, parallel
        )

    if settings.pair_steps:
        stages.append(stage("logits_start", settings.pair_steps, settings.pair_rate, pool))
    stages.append(stage("logits", settings.steps, settings.rate, None))
    return stages
