"""The order of the stages that follow stage 1, shared by the recipes."""

from __future__ import annotations

from torch import nn

from ...losses import TeacherScore
from ...models import DD2Generator, DD2Guidance
from ..config import DistillConfig
from ..loop import Stage
from ..pairs import PairPool
from ..stages import DistillStage, GuidanceStage


def copy_weights(source: nn.Module, *targets: nn.Module) -> None:
    """Copy the weights of ``source`` into each of ``targets``."""
    for target in targets:
        target.load_state_dict(source.state_dict())


def distillation_stages(
    generator: DD2Generator,
    guidance: DD2Guidance,
    ema: DD2Generator,
    score: TeacherScore,
    pool: PairPool | None,
    config: DistillConfig,
) -> list[Stage]:
    """Guidance start and CSD; with ``align_steps``, performance alignment and CSD again.

    Alignment copies the EMA into the generator and trains the guidance network alone. The CSD
    after it takes ``aligned_steps`` steps without the auxiliary loss.
    """

    def distil(name: str, steps: int, pairs: PairPool | None) -> Stage:
        return DistillStage(
            name,
            steps,
            generator,
            guidance,
            ema,
            score,
            pairs,
            config,
            lambda: copy_weights(generator, ema),
        )

    stages: list[Stage] = [
        GuidanceStage("guidance", config.guidance_start, generator, guidance, config),
        distil("distill", config.steps, pool),
    ]
    if config.align_steps:
        stages += [
            GuidanceStage(
                "align",
                config.align_steps,
                generator,
                guidance,
                config,
                lambda: copy_weights(ema, generator),
            ),
            distil("aligned", config.aligned_steps, None),
        ]
    return stages
