"""The paper's recipe for a loaded teacher: stage 0 for one that reads codes only, stage 1, stage 2,
alignment; or DD1's regression, the baseline."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...checkpoints import save
from ...checkpoints.bundle import SETTINGS
from ...checkpoints.files import check_writable, write_atomic
from ...checkpoints.locks import locked
from ...losses import TeacherScore
from ...models import DD2Generator, DD2Guidance
from ...models.families import backbone_of
from ...processes import process_group
from ...sampling.arguments import check_device
from ..adaptation import AdaptationStage
from ..config import (
    AdaptationConfig,
    DistillConfig,
    ExecutionConfig,
    NetworkConfig,
    RegressionConfig,
    ScoreConfig,
    Stage1Config,
    _Checked,
    _one_of,
    parse_config,
)
from ..lockstep import Difference, compare, shorten
from ..loop import Stage, run_stages
from ..parallel import Parallel
from ..provenance import provenance
from ..stages import GroundTruthScoreStage, RegressionStage
from ..state import RunState, clear_finished, lasting_settings
from .distillation import copy_weights, distillation_stages
from .teachers import load_teacher, open_samples
from .watching import RunWatch, WatchConfig

METHODS = ("dd2", "dd1")


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
class DistilConfig(_Checked):
    """Every setting of the recipe.

    Args:
        method: ``"dd2"``, or ``"dd1"`` for the regression of pairs alone.
        device: ``"auto"`` is CUDA where there is one.
        samples: the distribution that stage 1 and DD1's pairs are drawn from.
        score: the one that is distilled. ode_steps: of pairs that are drawn when needed.
    """

    method: str = "dd2"
    seed: int = 0
    device: str = "auto"
    source: SourceConfig = field(default_factory=SourceConfig)
    network: NetworkConfig = NetworkConfig(head_width=1024, head_depth=4)
    samples: ScoreConfig = field(default_factory=ScoreConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    adaptation: AdaptationConfig = AdaptationConfig(steps=0)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    regression: RegressionConfig = RegressionConfig(steps=0)
    distill: DistillConfig = field(default_factory=DistillConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    ode_steps: int = 20
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("method", self.method, METHODS)
        if self.method == "dd1" and not self.regression.steps:
            raise ValueError("regression.steps: expected at least 1 for method dd1, got 0")


def run(config: DistilConfig, out: Path, *, progress: bool = True) -> Path:
    """Distil the teacher that ``config`` names into ``out``: ``generator.safetensors`` (the average
    weights, and the tokenizer where ``config`` names no file of it), ``guidance.safetensors`` and
    ``run.json``.

    Under torchrun every process calls this. An interrupted run continues when it is called again,
    on any number of processes.

    Raises:
        ValueError: settings that do not fit the interrupted run's, the teacher or the processes.
        FileExistsError: ``out`` holds a finished run and ``config.overwrite`` is False.
        OSError: a file cannot be read or written, or another run has the folder.
        FloatingPointError: a loss is not finite.
    """
    out = Path(out)
    check_writable(out)
    with process_group(None) as (rank, own_device), locked(out):
        if rank == 0:
            names = [f"{name}.safetensors" for name in ("generator", "guidance", "teacher")]
            inputs = (config.source.teacher, config.source.tokenizer)
            clear_finished(out, (out / SETTINGS).is_file(), names, config.overwrite, inputs)
        # A function of its own, so that no network is left when the group ends.
        _run(config, out, own_device or choose_device(config.device), progress)
    return out


def _run(config: DistilConfig, out: Path, device: torch.device, progress: bool) -> None:
    parallel = Parallel(config.execution, device)
    networks = Networks(config, parallel)
    settings = lasting_settings(config)
    every = config.watch.save_every
    saved = networks.trained_modules()
    state = RunState(out, saved, settings, seed=config.seed, every=every, parallel=parallel)
    state.resume(replace=config.overwrite)
    networks.freeze(state.done)
    stages = build_stages(config, networks, parallel)
    with RunWatch(out, config.watch, networks.ema, parallel, state) as watch:
        run_stages(stages, state, progress=progress, parallel=parallel, watch=watch)
    _write(out, config, networks, state)
    state.remove()


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


class Networks:
    """The models of a run on its device, prepared for its processes; the trained ones start from
    the teacher and the seed.

    ``teacher`` is frozen; of one that reads codes only it is a copy that reads any vector, in
    float32 until stage 0 is over. ``source``, which draws samples, is the teacher as loaded.
    """

    def __init__(self, config: DistilConfig, parallel: Parallel) -> None:
        self.parallel, self.config = parallel, config
        source = config.source
        settings = parse_config(shlex.split(source.config), "source.config")
        teacher = load_teacher(source.teacher, source.tokenizer, config.seed, settings)
        family, backbone = backbone_of(teacher)
        self.adapting = not backbone.adapted
        self.source: Any = teacher.to(parallel.device)
        if self.adapting:
            teacher = family.adapt(teacher, config.seed).requires_grad_(False)
        self.teacher: Any = teacher.to(parallel.device)
        self.teacher.tokenizer.to(parallel.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.guidance = DD2Guidance.from_teacher(
                self.teacher, **dataclasses.asdict(config.network)
            )
        self.generator = DD2Generator.from_guidance(self.guidance)
        self.ema = DD2Generator.from_guidance(self.guidance).requires_grad_(False)
        for network in (self.guidance, self.generator, self.ema):
            network.teacher = self.teacher
            parallel.prepare(network)

    def trained_modules(self) -> dict[str, nn.Module]:
        """What a saved state holds."""
        names = ("guidance", "generator", "ema", *(["teacher"] if self.adapting else []))
        return {name: getattr(self, name) for name in names}

    def freeze(self, done: list[str] | None = None) -> None:
        """Put the teacher into the run's precision, once nothing trains it any more.

        Args:
            done: stages that a resumed run has behind it.
        """
        waits = self.adapting and self.config.adaptation.steps > 0
        if waits and done is not None and "adaptation" not in done:
            return
        self.teacher.requires_grad_(False)
        if self.config.execution.precision == "bfloat16":
            self.teacher.to(torch.bfloat16)
            self.source.to(torch.bfloat16)

    def start_stage1(self) -> None:
        """The guidance network's backbone is the teacher's, as stage 0 left it."""
        self.freeze()
        if self.adapting:
            state = {k: v.float() for k, v in self.teacher.state_dict().items()}
            backbone = self.guidance.backbone
            own = {k: v for k, v in state.items() if k in backbone.state_dict()}
            self.parallel.load_model(backbone, own)

    def start_generator(self) -> None:
        """Generator and average start from stage 1's network."""
        copy_weights(self.guidance, self.generator, self.ema)


def build_stages(config: DistilConfig, networks: Networks, parallel: Parallel) -> list[Stage]:
    """The stages in order; each starts from what the ones before left in ``networks``."""
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
        stages.append(AdaptationStage(teacher, pool, config.adaptation, parallel=parallel))
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


def _write(out: Path, config: DistilConfig, networks: Networks, state: RunState) -> None:
    """The networks, whole, then ``run.json``, whose presence says that the run is finished."""
    parallel = networks.parallel
    metadata = {"recipe": "distil", "method": config.method, "seed": config.seed}
    # What has no file of its own goes into the generator's.
    tokenizer = None if config.source.tokenizer else networks.teacher.tokenizer
    parts = {"generator": networks.ema}
    if config.method == "dd2":
        parts["guidance"] = networks.guidance  # type: ignore[assignment]
    for name, network in parts.items():
        weights = parallel.model_state(network)
        if parallel.rank == 0:
            with torch.device("meta"):
                whole = type(network)(**network.config)
            whole.load_state_dict(weights, assign=True)
            inside = tokenizer if name == "generator" else None
            save(out / f"{name}.safetensors", whole, metadata, tokenizer=inside)
    if parallel.rank > 0:
        return
    if networks.adapting:
        save(out / "teacher.safetensors", networks.teacher, metadata)
    settings = dataclasses.asdict(config)
    del settings["overwrite"]
    report = {
        "recipe": "distil",
        "settings": settings,
        "provenance": provenance(),
        "processes": parallel.count,
        "losses": state.losses,
        "seconds": state.seconds,
        "metrics": {},
    }
    text = json.dumps(report, indent=2, sort_keys=True) + "\n"
    write_atomic(out / SETTINGS, text.encode())
