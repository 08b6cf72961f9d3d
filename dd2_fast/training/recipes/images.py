"""From a user's images to a one-step generator: tokenizer, teacher, and stages 0 to 2 or those of a
logit student."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...checkpoints import save
from ...checkpoints.files import check_writable
from ...checkpoints.locks import locked
from ...models import families
from ...processes import process_group
from ..config import (
    AdaptationConfig,
    Checked,
    Count,
    CsdConfig,
    ExecutionConfig,
    LogitsConfig,
    NetworkConfig,
    RegressionConfig,
    ScoreConfig,
    Stage1Config,
    one_of,
)
from ..image_config import (
    DataConfig,
    EvaluationConfig,
    ImageClassifierConfig,
    ImagePairsConfig,
    ImageTeacherConfig,
    ImageTokenizerConfig,
)
from ..loop import Stage
from ..parallel import Parallel
from ..samples.image_batches import ImageData
from ..samples.images import Survey
from .distil import choose_device
from .image_evaluation import evaluate_run
from .image_networks import Networks
from .image_stages import build_stages
from .image_start import DONE, PAIRS, Keeper, load_start, stage1_settings
from .keeping import check_start, write_network
from .running import Made, carry_out
from .watching import WatchConfig

SURVEY = "survey.json"
LAST = ("tokenizer", "teacher", "generator")
METHODS = ("dd2", "logits")
PARTS = ("tokenizer", "classifier", "teacher", "reader", "guidance", "stage1", "generator", "dd1")
FAMILIES = tuple(name for name, family in families.FAMILIES.items() if family.images is not None)
_MODULES = {  # what is written, by the name of the last stage
    "tokenizer": PARTS[:2],
    "teacher": PARTS[:3],
    "generator": PARTS,
}


@dataclass(frozen=True)
class ImageSourceConfig:
    """The images, and what need not be trained.

    Args:
        data: see :func:`..samples.images.open_images`.
        tokenizer: the file of one of the family: it is frozen, and no other is trained.
        teacher: the file of one, which is fine-tuned. config: what the file does not tell.
    """

    data: str = ""
    teacher: str = ""
    tokenizer: str = ""
    config: str = ""


@dataclass(frozen=True)
class ImagesConfig(Checked):
    """Every setting of the recipe.

    Args:
        family: of the networks, ``"var"`` or ``"llamagen"``.
        last: the stage to stop after, ``"tokenizer"``, ``"teacher"`` or ``"generator"``.
        method: what follows the teacher: ``"dd2"``; ``"logits"`` for a
            :class:`dd2_fast.models.LogitStudent`, which takes ``logits`` and ``network.exact`` in
            the place of the settings of stages 0 to 2.
        device: ``"auto"`` is CUDA where there is one.
        samples: the distribution that stage 1 is trained on. score: the one that is distilled.
        adaptation: stage 0 of a teacher that reads codes only, LlamaGen's; 0 steps: as the MLP of
            code vectors is fitted.
        pairs: how many are drawn before the stages that learn from them, all from ``score``.
        regression: DD1's of the generator, before stage 2. dd1: of a network of its own, the
            baseline, from stage 1 on. ode_steps: of the pairs that they are trained on.
        start: ``"RUN:stage1"``, the folder of a run with the same settings up to stage 1, whose
            networks and pairs are taken, or empty.
    """

    family: str = "var"
    last: str = "generator"
    method: str = "dd2"
    seed: Count = 0
    device: str = "auto"
    source: ImageSourceConfig = field(default_factory=ImageSourceConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: ImageTokenizerConfig = field(default_factory=ImageTokenizerConfig)
    classifier: ImageClassifierConfig = field(default_factory=ImageClassifierConfig)
    teacher: ImageTeacherConfig = field(default_factory=ImageTeacherConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    samples: ScoreConfig = field(default_factory=ScoreConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    adaptation: AdaptationConfig = AdaptationConfig(steps=0)
    pairs: ImagePairsConfig = field(default_factory=ImagePairsConfig)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    regression: RegressionConfig = RegressionConfig(steps=0)
    dd1: RegressionConfig = RegressionConfig(steps=0)
    distill: CsdConfig = field(default_factory=CsdConfig)
    logits: LogitsConfig = field(default_factory=LogitsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    ode_steps: int = 20
    start: str = ""
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("family", self.family, FAMILIES)
        one_of("last", self.last, LAST)
        check_start(self.start)
        if self.start and self.last != "generator":
            raise ValueError(f"start: expected nothing where {self.last} is last")
        one_of("method", self.method, METHODS)
        if self.method == "logits":
            if self.start:
                raise ValueError(
                    f"start: expected nothing for method logits, got {self.start!r}; give "
                    "source.teacher and source.tokenizer, with teacher.steps = 0"
                )
            if self.dd1.steps:
                raise ValueError(
                    f"dd1.steps: expected 0 for method logits, got {self.dd1.steps}: it starts "
                    "from stage 1"
                )
            if self.logits.pairs:
                raise ValueError(
                    f"logits.pairs: expected 0 in this recipe, got {self.logits.pairs}; give "
                    "pairs.count"
                )
        if not self.teacher.steps and not self.source.teacher and self.last != "tokenizer":
            raise ValueError("teacher.steps: expected at least 1 without source.teacher, got 0")


def run(
    config: ImagesConfig,
    out: Path,
    *,
    progress: bool = True,
    features: Any = None,
    discriminator: nn.Module | None = None,
) -> Path:
    """Train on the images that ``config.source.data`` names, into ``out``: a file a network,
    ``run.json`` with the evaluation, and a picture of each way to make images.

    Under torchrun every process calls this. An interrupted run continues when it is called again.

    Args:
        features, discriminator: of the tokenizer's stage, for its perceptual and adversarial terms:
            a frozen extractor, images to a tensor or several, and a network from images to logits.

    Raises:
        ValueError: settings that do not fit the interrupted run's, each other or the images.
        FileNotFoundError: no images. FileExistsError: ``out`` holds a finished run and
            ``config.overwrite`` is False. OSError: a file cannot be read or written, or another run
            has the folder. FloatingPointError: a loss is not finite.
    """
    out = Path(out)
    if not config.source.data:
        raise ValueError(
            "source.data: expected a folder of images, an .npz or IDX files, got nothing; give "
            "--data"
        )
    check_writable(out)
    with process_group(None) as (_, own_device), locked(out):
        device = own_device or choose_device(config.device)
        _run(config, out, device, progress, features, discriminator)
    return out


def _run(
    config: ImagesConfig,
    out: Path,
    device: torch.device,
    progress: bool,
    features: Any,
    discriminator: nn.Module | None,
) -> None:
    parallel = Parallel(config.execution, device)

    def make() -> Made:
        data = ImageData.open(config.source.data, config.data, parallel, out / SURVEY)
        if data.problems and parallel.rank == 0:
            print(f"data: {len(data.problems)} images left out", *_lines(data), sep="\n")
        networks = Networks(config, data.num_classes, parallel)
        networks.discriminator = None if discriminator is None else discriminator.to(device)
        settings = stage1_settings(config, data.images.classes)
        dd2 = config.last == "generator" and config.method == "dd2"
        kept = config.execution.keep_state and dd2
        metadata = {"recipe": "images", "seed": config.seed}

        keep = Keeper(out, networks, metadata, settings) if kept else None

        def take_start() -> None:
            if config.start:
                load_start(config.start, networks, settings)
                if keep is not None:
                    keep.write()

        def stages(done: Collection[str]) -> list[Stage]:
            return build_stages(config, networks, data, parallel, done, features, take_start)

        return Made(
            networks.modules(),
            stages,
            functools.partial(
                _write, out, config, networks, data, metadata, settings if kept else None
            ),
            networks.ema if config.last == "generator" else None,
            networks.tokenizer,
            keep,
            DONE if config.start else (),
        )

    inputs = [config.source.teacher, config.source.tokenizer]
    if config.start:
        folder = Path(config.start.rpartition(":")[0])
        inputs += [str(folder / f"{name}.safetensors") for name in (*PARTS, Path(PAIRS).stem)]

    carry_out(
        "images",
        config,
        out,
        make,
        parts=(*PARTS, Path(PAIRS).stem),
        inputs=inputs,
        parallel=parallel,
        progress=progress,
        keep=config.execution.keep_state,
        last_steps=last_steps(config),
    )


def last_steps(config: ImagesConfig) -> str:
    """The setting that says how many steps the last stage takes."""
    if config.last == "tokenizer":
        return "classifier.steps" if config.classifier.steps else "tokenizer.steps"
    if config.last == "teacher":
        return "teacher.steps"
    if config.method == "logits":
        return "logits.steps"
    return "distill.aligned_steps" if config.distill.align_steps else "distill.steps"


def _lines(data: ImageData) -> list[str]:
    return Survey(data.train, data.problems).summary().splitlines()


def _write(
    out: Path,
    config: ImagesConfig,
    networks: Networks,
    data: ImageData,
    metadata: dict[str, Any],
    settings: dict[str, Any] | None,
) -> dict[str, Any]:
    """Write the networks and judge them; every process must call it.

    ``settings``: that stage 1's file keeps.
    """
    parallel = networks.parallel
    averages = {"generator": "ema", "dd1": "dd1_ema"}
    made = networks.modules()
    for name in _MODULES[config.last]:
        if name not in made:
            continue
        network: Any = getattr(networks, averages.get(name, name))
        path = out / f"{name}.safetensors"
        if name in ("tokenizer", "classifier"):
            if parallel.rank == 0:
                save(path, network, metadata)
        else:
            kept = {"settings": settings} if name == "stage1" and settings else {}
            write_network(path, network, parallel, {**metadata, **kept})
    told: dict[str, Any] = {"processes": parallel.count, "metrics": {}, "data": data.report()}
    if config.evaluation.samples and parallel.rank == 0:
        told["evaluation"] = evaluate_run(
            out, data, config.evaluation, dataclasses.asdict(config.score), parallel.device
        )
    return told
