"""The paper's recipe for a loaded teacher: stage 0 for one that reads codes only, stage 1, stage 2,
alignment; or DD1's regression, the baseline; or a logit student."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...checkpoints import save
from ...checkpoints.files import check_writable
from ...checkpoints.locks import locked
from ...losses import TeacherScore
from ...models.family import as_module
from ...processes import process_group
from ...sampling.arguments import check_device
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
from ..lockstep import Difference, compare, shorten
from ..loop import Stage
from ..parallel import Parallel
from ..samples.draws import Source
from ..stages import AdaptationStage, GroundTruthScoreStage, PairsStage, RegressionStage
from .keeping import (
    STAGE1,
    TEACHER,
    WEIGHTS,
    Keeper,
    check_start,
    write_network,
)
from .logits import logit_stages
from .networks import Networks
from .running import Made, carry_out
from .stage2 import distillation_stages
from .teachers import open_samples
from .watching import WatchConfig

METHODS = ("dd2", "dd1", "logits")


@dataclass(frozen=True)
class SourceConfig:
    """What is distilled, and where its samples lie.

    ``teacher`` and ``tokenizer`` are files, see :func:`.teachers.load_teacher`; ``config`` is what
    the teacher's does not tell, as on a command line: ``"patch_nums=1,2,3 n_head=32"``; ``data`` is
    a folder of ``dd2-fast make-data``, or empty to draw samples when they are needed.
    """

    teacher: str = ""
    tokenizer: str = ""
    config: str = ""
    data: str = ""


@dataclass(frozen=True)
class DistilConfig(Checked):
    """Every setting of the recipe.

    Args:
        method: ``"dd2"``; ``"dd1"`` for the regression of pairs alone; ``"logits"`` for a
            :class:`dd2_fast.models.LogitStudent`, which takes ``logits`` and ``network.exact`` in
            the place of the settings of stages 0 to 2.
        device: ``"auto"`` is CUDA where there is one.
        samples: the distribution that stage 1 and DD1's pairs are drawn from.
        score: the one that is distilled. ode_steps: of pairs that are drawn when needed.
        start: ``"RUN:stage1"``, the folder of a run whose stage 1 is taken, or empty.
    """

    method: str = "dd2"
    seed: Count = 0
    device: str = "auto"
    source: SourceConfig = field(default_factory=SourceConfig)
    network: NetworkConfig = NetworkConfig(head_width=1024, head_depth=4)
    samples: ScoreConfig = field(default_factory=ScoreConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    adaptation: AdaptationConfig = AdaptationConfig(steps=0)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    regression: RegressionConfig = RegressionConfig(steps=0)
    distill: CsdConfig = field(default_factory=CsdConfig)
    logits: LogitsConfig = field(default_factory=LogitsConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    ode_steps: int = 20
    start: str = ""
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("method", self.method, METHODS)
        if self.method == "dd1" and not self.regression.steps:
            raise ValueError("regression.steps: expected at least 1 for method dd1, got 0")
        check_start(self.start)
        if self.start and self.method != "dd2":
            raise ValueError(
                f"start: expected nothing for method {self.method}, got {self.start!r}"
            )
        if self.method == "logits" and self.logits.pairs and self.source.data:
            raise ValueError(
                "logits.pairs: expected 0 with source.data, which has pairs, got "
                f"{self.logits.pairs}"
            )


def run(config: DistilConfig, out: Path, *, progress: bool = True) -> Path:
    """Distil the teacher that ``config`` names into ``out``: ``generator.safetensors`` (the average
    weights, and the tokenizer where ``config`` names no file of it), ``guidance.safetensors`` and
    ``run.json``.

    Under torchrun every process calls this. An interrupted run continues when it is called again,
    on any number of processes. A finished one goes on when it is called with more steps of its last
    stage, from the weights, optimisers and random state in ``final.pt``.

    Raises:
        ValueError: settings that do not fit the interrupted run's, the teacher or the processes.
        FileExistsError: ``out`` holds a finished run and ``config.overwrite`` is False.
        OSError: a file cannot be read or written, or another run has the folder.
        FloatingPointError: a loss is not finite.
    """
    out = Path(out)
    check_writable(out)
    with process_group(None) as (_, own_device), locked(out):
        # A function of its own, so that no network is left when the group ends.
        _run(config, out, own_device or choose_device(config.device), progress)
    return out


def _run(config: DistilConfig, out: Path, device: torch.device, progress: bool) -> None:
    parallel = Parallel(config.execution, device)
    metadata = {"recipe": "distil", "method": config.method, "seed": config.seed}

    def make() -> Made:
        networks = Networks(config, parallel)
        execution = config.execution
        stage1 = execution.keep_state and config.method != "logits"
        settings = networks.stage1_settings() if stage1 else None
        tokenizer = networks.own_tokenizer()
        keep = Keeper(out, networks, metadata, settings, execution.keep_every, tokenizer)

        def stages(done: Collection[str]) -> list[Stage]:
            networks.freeze(done)
            return build_stages(config, networks, parallel)

        return Made(
            networks.trained_modules(),
            stages,
            functools.partial(_write, out, networks, metadata),
            networks.ema,
            keep=keep,
            done=("adaptation", "stage1") if config.start else (),
            teacher=networks.source,
        )

    inputs = [config.source.teacher, config.source.tokenizer]
    if config.start:
        folder = Path(config.start.rpartition(":")[0])
        inputs += [str(folder / STAGE1), str(folder / TEACHER)]
    along = [f"{WEIGHTS}/{path.stem}" for path in (out / WEIGHTS).glob("*.safetensors")]
    carry_out(
        "distil",
        config,
        out,
        make,
        parts=("generator", "guidance", "stage1", "teacher", *along),
        inputs=inputs,
        parallel=parallel,
        progress=progress,
        keep=config.execution.keep_state,
        last_steps=last_steps(config),
    )


def last_steps(config: DistilConfig) -> str:
    """The setting that says how many steps the last stage takes."""
    if config.method != "dd2":
        return "regression.steps" if config.method == "dd1" else "logits.steps"
    return "distill.aligned_steps" if config.distill.align_steps else "distill.steps"


def check_parity(
    config: DistilConfig, steps: int, *, backend: str | None = None
) -> Iterator[Difference]:
    """The recipe by fused operators beside the recipe by the plain torch ones, ``steps`` steps of
    every stage from the same state and seeds; see :func:`dd2_fast.training.lockstep.compare`.

    Raises:
        ValueError: ``steps`` is below 1; what :func:`run` raises of ``config``.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    config = shorten(config, steps)
    parallel = Parallel(config.execution, choose_device(config.device))
    both = [Networks(config, parallel) for _ in range(2)]
    stages = [build_stages(config, networks, parallel) for networks in both]
    modules = [networks.trained_modules() for networks in both]
    yield from compare(
        stages[0],
        stages[1],
        modules[0],
        modules[1],
        steps=steps,
        backend=backend,
        seed=config.seed,
    )


def choose_device(name: str) -> torch.device:
    """The device of a name, ``"auto"`` for CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(name)
    return torch.device(name)


def build_stages(config: DistilConfig, networks: Networks, parallel: Parallel) -> list[Stage]:
    """The stages in order; each starts from what the ones before left in ``networks``."""
    if config.method == "logits":
        return _logit_stages(config, networks, parallel)
    teacher = networks.teacher
    samples = TeacherScore(networks.source, **dataclasses.asdict(config.samples))
    score = TeacherScore(teacher, **dataclasses.asdict(config.score))
    dd2 = config.method == "dd2"
    pairs = bool(config.regression.steps or (dd2 and config.distill.auxiliary))
    pool = open_samples(
        config.source.data,
        samples,
        pairs=pairs,
        ode_steps=config.ode_steps,
        device=parallel.device,
    )
    stages: list[Stage] = []
    if networks.adapting and config.adaptation.steps:
        adaptation = AdaptationStage(
            teacher, pool, config.adaptation, parallel=parallel, source=networks.source
        )
        stages.append(adaptation)
    if dd2:
        stages.append(
            GroundTruthScoreStage(
                networks.guidance, score, pool, config.stage1, networks.start_stage1, parallel
            )
        )
    if config.regression.steps:
        stages.append(
            RegressionStage(
                networks.generator,
                samples,
                pool,
                config.regression,
                networks.start_generator,
                parallel,
                None if dd2 else networks.ema,
                config.distill.ema_decay,
            )
        )
    if dd2:
        generator, guidance, ema = networks.generator, networks.guidance, networks.ema
        start = None if config.regression.steps else networks.start_generator
        stages += distillation_stages(
            generator,
            guidance,
            ema,
            score,
            pool if config.distill.auxiliary else None,
            config.distill,
            parallel,
            start,
        )
    return stages


def _logit_stages(config: DistilConfig, networks: Networks, parallel: Parallel) -> list[Stage]:
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
    student, ema, prepare = networks.generator, networks.ema, networks.freeze
    return [*stages, *logit_stages(settings, student, ema, score, pool, prepare, parallel)]


def _write(out: Path, networks: Networks, metadata: dict[str, Any]) -> dict[str, Any]:
    """Write the networks, whole; every process must call it."""
    parallel, tokenizer = networks.parallel, networks.own_tokenizer()
    path = out / "generator.safetensors"
    write_network(path, networks.ema, parallel, metadata, tokenizer)
    if networks.config.method == "dd2":
        write_network(out / "guidance.safetensors", networks.guidance, parallel, metadata)
    if networks.adapting and parallel.rank == 0:
        save(out / TEACHER, as_module(networks.teacher), metadata)
    return {"processes": parallel.count, "metrics": {}}
