"""The order of the stages that follow stage 1, shared by the recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import nn

from ...losses import TeacherScore
from ...models import DD2Generator, DD2Guidance
from ..config import CsdConfig
from ..loop import Stage
from ..parallel import Parallel
from ..samples.draws import Source
from ..stages import CsdStage, GuidanceStage


def copy_weights(source: nn.Module, *targets: nn.Module) -> None:
    """Copy the weights of ``source`` into each of ``targets``."""
    for target in targets:
        target.load_state_dict(source.state_dict())


def distillation_stages(
    generator: DD2Generator,
    guidance: DD2Guidance,
    ema: DD2Generator,
    score: TeacherScore,
    pool: Source | None,
    config: CsdConfig,
    parallel: Parallel | None = None,
    prepare: Callable[[], object] | None = None,
) -> list[Stage]:
    """Guidance start and CSD; with ``align_steps``, performance alignment and CSD again.

    Alignment copies the EMA into the generator and trains the guidance network alone. The CSD
    after it takes ``aligned_steps`` steps without the auxiliary loss, and ``aligned_updates``
    guidance updates each.

    Args:
        pool: of pairs, for the auxiliary loss; None: none. parallel: the processes.
        prepare: called before the first of these stages.
    """

    def csd(name: str, steps: int, pairs: Source | None, config: CsdConfig) -> Stage:
        return CsdStage(
            name,
            steps,
            generator,
            guidance,
            ema,
            score,
            pairs,
            config,
            lambda: copy_weights(generator, ema),
            parallel,
        )

    stages: list[Stage] = [
        GuidanceStage(
            "guidance", config.guidance_start, generator, guidance, config, prepare, parallel
        ),
        csd("distill", config.steps, pool, config),
    ]
    if config.align_steps:
        updates = config.aligned_updates or config.guidance_updates
        aligned = dataclasses.replace(config, guidance_updates=updates)
        stages += [
            GuidanceStage(
                "align",
                config.align_steps,
                generator,
                guidance,
                config,
                lambda: copy_weights(ema, generator),
                parallel,
            ),
            csd("aligned", config.aligned_steps, None, aligned),
        ]
    return stages
