"""The stages of a run over a user's images, in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from ...losses import TeacherScore
from ..loop import Stage
from ..parallel import Parallel
from ..samples.draws import LivePairs, LiveSamples, Source
from ..samples.image_batches import ImageData
from ..stages import (
    AdaptationStage,
    GroundTruthScoreStage,
    ImageClassifierStage,
    ImageTeacherStage,
    ImageTokenizerStage,
    PairsStage,
    RegressionStage,
)
from .image_networks import Networks
from .logits import logit_stages
from .stage2 import distillation_stages

if TYPE_CHECKING:
    from .images import ImagesConfig


def build_stages(
    config: ImagesConfig,
    networks: Networks,
    data: ImageData,
    parallel: Parallel,
    done: Collection[str] = (),
    features: Any = None,
    after_stage1: Callable[[], None] = lambda: None,
) -> list[Stage]:
    """The stages in order; each starts from what the ones before left in ``networks``.

    ``done``: those that a resumed run has behind it. ``after_stage1`` is called before the first of
    those that come after stage 1.
    """
    stages: list[Stage] = []

    def batches(number: int, size: int) -> Any:
        return data.batches(size, config.seed * 4 + number, parallel)

    if networks.trains_tokenizer:
        stages.append(
            ImageTokenizerStage(
                networks.tokenizer,
                batches(0, config.tokenizer.batch),
                config.tokenizer,
                parallel,
                features=features,
                discriminator=networks.discriminator,
            )
        )
    if not networks.trains_tokenizer or "tokenizer" in done:
        networks.tokenizer.requires_grad_(False)
    if config.classifier.steps:
        stages.append(
            ImageClassifierStage(
                networks.classifier,
                batches(1, config.classifier.batch),
                config.classifier,
                parallel,
            )
        )
    trains_teacher = config.last != "tokenizer" and config.teacher.steps > 0
    if trains_teacher:
        stages.append(
            ImageTeacherStage(
                networks.teacher,
                networks.average,
                batches(2, config.teacher.batch),
                config.teacher,
                parallel=parallel,
            )
        )
    if config.last != "tokenizer":
        networks.teacher.requires_grad_(trains_teacher and "teacher" not in done)
    if config.last == "generator":
        if config.method == "logits":
            stages += _logit_stages(config, networks, parallel)
        else:
            stages += _one_step_stages(config, networks, parallel, done, after_stage1)
    return stages


def _logit_stages(config: ImagesConfig, networks: Networks, parallel: Parallel) -> list[Stage]:
    score = TeacherScore(networks.teacher, **dataclasses.asdict(config.score))
    stages: list[Stage] = []
    pool: Source = LivePairs(score, ode_steps=config.ode_steps)
    if config.pairs.count:
        stages.append(PairsStage(networks.pool, score, config.pairs.batch, config.ode_steps))
        pool = networks.pool
    student, ema, start = networks.generator, networks.ema, networks.start_student
    return [*stages, *logit_stages(config.logits, student, ema, score, pool, start, parallel)]


def _one_step_stages(
    config: ImagesConfig,
    networks: Networks,
    parallel: Parallel,
    done: Collection[str],
    after_stage1: Callable[[], None],
) -> list[Stage]:
    samples = TeacherScore(networks.teacher, **dataclasses.asdict(config.samples))
    score = TeacherScore(networks.reader, **dataclasses.asdict(config.score))
    # What is drawn is the trained teacher's own, whatever stage 0 makes of its copy.
    drawn = TeacherScore(networks.teacher, **dataclasses.asdict(config.score))
    pairs = bool(config.regression.steps or config.distill.auxiliary)
    live: Source = LivePairs(drawn, ode_steps=config.ode_steps)
    pool: Source = live if pairs else LiveSamples(samples)
    generator, guidance, ema = networks.generator, networks.guidance, networks.ema
    stages: list[Stage] = []
    if config.pairs.count:
        stages.append(PairsStage(networks.pool, drawn, config.pairs.batch, config.ode_steps))
        pool = live = networks.pool
    if networks.adapting:
        reader, prepare = networks.reader, networks.start_reader
        stages.append(
            AdaptationStage(reader, pool, config.adaptation, prepare, parallel, networks.teacher)
        )
        reader.requires_grad_("adaptation" not in done)
    stages.append(
        GroundTruthScoreStage(guidance, score, pool, config.stage1, networks.start_stage1, parallel)
    )
    first = "dd1" if config.dd1.steps else "regression" if config.regression.steps else "guidance"

    def start(name: str, own: Callable[[], None]) -> Callable[[], None]:
        def prepare() -> None:
            if name == first:
                after_stage1()
            own()

        return prepare

    if config.dd1.steps:
        baseline = RegressionStage(
            networks.dd1,
            score,
            live,
            config.dd1,
            start("dd1", networks.start_dd1),
            parallel,
            networks.dd1_ema,
            config.distill.ema_decay,
            "dd1",
        )
        stages.append(baseline)
    if config.regression.steps:
        prepare = start("regression", networks.start_generator)
        stages.append(RegressionStage(generator, score, pool, config.regression, prepare, parallel))
    stages += distillation_stages(
        generator,
        guidance,
        ema,
        score,
        pool if config.distill.auxiliary else None,
        config.distill,
        parallel,
        None if config.regression.steps else start("guidance", networks.start_generator),
    )
    return stages
