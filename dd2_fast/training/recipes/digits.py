"""The whole DD2 recipe on scikit-learn's handwritten digits, on a CPU, in minutes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...checkpoints import save
from ...checkpoints.bundle import PARTS, Bundle
from ...losses import TeacherScore
from ...models import ARTeacher, DD2Generator, DD2Guidance, VQTokenizer
from ..config import (
    Checked,
    Count,
    CsdConfig,
    NetworkConfig,
    PairsConfig,
    RegressionConfig,
    ScoreConfig,
    Stage1Config,
    TeacherConfig,
    TokenizerConfig,
)
from ..loop import Stage
from ..samples.digits import DigitsData, load_digits
from ..samples.pool import PairPool
from ..stages import (
    GroundTruthScoreStage,
    PairsStage,
    RegressionStage,
    TeacherStage,
    TokenizerStage,
)
from ..stages.classifier import ClassifierStage
from .running import Made, carry_out_alone
from .stage2 import copy_weights, distillation_stages
from .watching import WatchConfig

_CLASSES = 10
_FEWEST_SAMPLES = 500


@dataclass(frozen=True)
class DigitsConfig(Checked):
    """Every setting of the digits recipe; ``watch`` and ``overwrite`` do not change its result."""

    seed: Count = 0
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    distill: CsdConfig = field(default_factory=CsdConfig)
    classifier_epochs: Count = 30
    evaluation_samples: int = 5000
    watch: WatchConfig = WatchConfig(save_every=30.0, images_every=300)
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evaluation_samples < _FEWEST_SAMPLES:
            raise ValueError(
                f"evaluation_samples: expected at least {_FEWEST_SAMPLES}, "
                f"got {self.evaluation_samples}"
            )


def run(config: DigitsConfig, out: Path, *, progress: bool = True) -> Path:
    """Train tokenizer, teacher and generator on the digits; the bundle folder ``out``.

    A run that was interrupted continues from ``out/state.pt`` when it is called again. Under
    torchrun the first process makes it, and the others wait.

    Raises:
        ValueError: ``config`` differs from the interrupted run's (the differing names are listed).
        FileExistsError: ``out`` holds a finished bundle and ``config.overwrite`` is False.
        OSError: ``out`` cannot be written, or another run has it.
        FloatingPointError: a loss is not finite.
    """
    out = Path(out)

    def make() -> Made:
        data, models = load_digits(), build_models(config)
        return Made(
            models,
            lambda done: build_stages(config, models, data),
            lambda: _write_parts(out, config, models, data),
            models["ema"],
            models["tokenizer"],
        )

    carry_out_alone("digits", config, out, make, parts=PARTS, progress=progress)
    return out


def build_models(config: DigitsConfig) -> dict[str, Any]:
    """Every model of the run, freshly initialised from the seed."""
    from ...metrics.classifier import DigitsClassifier

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        tokenizer = VQTokenizer(
            vocabulary=config.tokenizer.vocabulary,
            dimension=config.tokenizer.dimension,
            width=config.tokenizer.width,
        )
        teacher = ARTeacher(
            num_tokens=tokenizer.num_tokens,
            vocabulary=config.tokenizer.vocabulary,
            dimension=config.tokenizer.dimension,
            num_classes=_CLASSES,
            width=config.teacher.width,
            layers=config.teacher.layers,
            heads=config.teacher.heads,
        )
        guidance = DD2Guidance.from_teacher(teacher, **dataclasses.asdict(config.network))
        return {
            "tokenizer": tokenizer,
            "classifier": DigitsClassifier(),
            "teacher": teacher,
            "pool": PairPool(config.pairs.count, tokenizer.num_tokens, config.tokenizer.dimension),
            "guidance": guidance,
            "stage1": DD2Generator.from_guidance(guidance),
            "generator": DD2Generator.from_guidance(guidance),
            "ema": DD2Generator.from_guidance(guidance),
        }


def build_stages(config: DigitsConfig, models: dict[str, Any], data: DigitsData) -> list[Stage]:
    """The stages in order; each starts from what the ones before left in ``models``."""
    teacher, guidance, generator = models["teacher"], models["guidance"], models["generator"]
    pool, ema = models["pool"], models["ema"]
    score = TeacherScore(teacher, **dataclasses.asdict(config.score))
    distill = config.distill

    def start_stage1() -> None:
        guidance.backbone.load_state_dict(teacher.backbone.state_dict())

    def start_generator() -> None:
        copy_weights(guidance, models["stage1"], generator, ema)

    stages: list[Stage] = [
        TokenizerStage(models["tokenizer"], data.train_images, config.tokenizer),
        ClassifierStage(models["classifier"], data, config.seed, config.classifier_epochs),
        TeacherStage(
            teacher, models["tokenizer"], data.train_images, data.train_labels, config.teacher
        ),
        PairsStage(pool, score, config.pairs.batch, config.pairs.ode_steps),
        GroundTruthScoreStage(guidance, score, pool, config.stage1, start_stage1),
        RegressionStage(generator, score, pool, config.regression, start_generator),
    ]
    stages += distillation_stages(generator, guidance, ema, score, pool, distill)
    return stages


def _write_parts(
    out: Path, config: DigitsConfig, models: dict[str, Any], data: DigitsData
) -> dict[str, Any]:
    """Write every part of the bundle; how good they are."""
    from ...metrics import evaluate

    parts = {name: models["ema" if name == "generator" else name] for name in PARTS}
    for model in parts.values():
        model.eval().requires_grad_(False)
    metrics = evaluate(
        Bundle(**parts, settings={}),
        data,
        num_samples=config.evaluation_samples,
        seed=config.seed,
        sampling=dataclasses.asdict(config.score),
    )
    for name, model in parts.items():
        save(out / f"{name}.safetensors", model, {"recipe": "digits", "seed": config.seed})
    return {"metrics": metrics}
