"""Trainers over teachers with random weights, each ready for one kind of step: what a step costs
depends on the shapes alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import resources
from typing import Any

import pytest
import torch
from torch import nn

from dd2_fast.losses import TeacherScore
from dd2_fast.models import (
    DD2Generator,
    DD2Guidance,
    LlamaGenTeacher,
    LlamaGenTokenizer,
    VARTeacher,
    VARTokenizer,
)
from dd2_fast.models.llamagen import adapt
from dd2_fast.ops import default_backend
from dd2_fast.training.config import ExecutionConfig
from dd2_fast.training.loop import Losses, Stage
from dd2_fast.training.parallel import Parallel
from dd2_fast.training.recipes.distil import DistilConfig
from dd2_fast.training.recipes.teachers import load_teacher
from dd2_fast.training.settings import configure
from dd2_fast.training.stages import CsdStage, GroundTruthScoreStage, GuidanceStage
from dd2_fast.training.stages.adaptation import AdaptationStage
from measure import free_memory

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

# Gigabytes that two trainers of a model, the fused and the reference, take with their batch.
MODELS = {"tiny_var": 1, "tiny_llamagen": 1, "var_d16": 60, "llamagen_l": 60}
# What the most of a run goes into comes first.
STEPS = {
    "distill": "a guidance update and a generator update on the same images, the average",
    "gts_whole": "stage 1, everything",
    "gts_head": "stage 1, the head alone",
    "fcs": "a guidance update on new images",
    "adaptation": "stage 0 of LlamaGen",
}


@dataclasses.dataclass
class Ready:
    """Tokens ``[N, n]`` and labels ``[N]`` that lie in memory, as a source of training data."""

    tokens: torch.Tensor
    labels: torch.Tensor

    def draw(self, size: int, rng: torch.Generator) -> torch.Tensor:
        return torch.randint(len(self.labels), (size,), generator=rng)

    def take(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = chosen.to(self.labels.device)
        return self.tokens[chosen], self.labels[chosen]


def steps_of(model: str) -> list[str]:
    return [step for step in STEPS if step != "adaptation" or "llamagen" in model]


def batch_of(model: str) -> int:
    """Images of a step."""
    return 16


def random_teacher(model: str, device: str) -> Any:
    """A frozen float32 teacher of a model's shapes; a LlamaGen one reads any vector."""
    torch.manual_seed(0)
    if model.startswith("tiny"):
        teacher = load_teacher("random-var" if model == "tiny_var" else "random-llamagen")
    else:
        with torch.device(device):
            tokenizer: Any = VARTokenizer() if model == "var_d16" else LlamaGenTokenizer()
            if model == "var_d16":
                teacher = VARTeacher(patch_nums=tokenizer.patch_nums)
            else:
                teacher = LlamaGenTeacher(width=1024, layers=24, heads=16, hidden=2816)
        teacher.tokenizer = tokenizer
        nn.init.normal_(tokenizer.quantize.embedding.weight)
    if isinstance(teacher, LlamaGenTeacher):
        teacher = adapt(teacher, smooth=32 if model.startswith("tiny") else 1024, exact=False)[0]
    for network in (teacher, teacher.tokenizer):
        network.to(device).eval().requires_grad_(False)
    return teacher


def settings(model: str, device: str, *, compile: bool = False) -> DistilConfig:
    """The package's configuration for a model, for single steps of a smaller batch."""
    path = resources.files("dd2_fast.training") / "configs" / f"{model}.toml"
    config = configure(DistilConfig(), tomllib.loads(path.read_text(encoding="utf-8")))
    batch = batch_of(model)
    low = device == "cuda" and not model.startswith("tiny")
    execution = ExecutionConfig(precision="bfloat16" if low else "float32", compile=compile)
    distill = dataclasses.replace(config.distill, batch=batch, guidance_updates=1, warmup=0)
    return dataclasses.replace(
        config,
        adaptation=dataclasses.replace(config.adaptation, steps=100, batch=batch, warmup=0),
        stage1=dataclasses.replace(
            config.stage1, head_steps=0, steps=100, batch=batch, warmup=0, hold=1.0
        ),
        distill=distill,
        execution=execution,
    )


class Trainer:
    """One kind of step over networks of its own; ``teacher`` is shared and stays frozen, but where
    the step trains it."""

    def __init__(self, model: str, step: str, teacher: Any, *, compile: bool = False) -> None:
        device = str(teacher.codebook.device.type)
        config = settings(model, device, compile=compile)
        self.parallel = Parallel(config.execution, device)
        self.modules: dict[str, nn.Module] = {}
        self.stage = self._stage(step, teacher, config)
        self.rng = torch.Generator().manual_seed(0)

    def step(self, backend: str | None) -> Losses:
        """One step by the operators of ``backend``, None for the usual ones. Never step 0, which
        measures more."""
        with default_backend(backend):
            return self.stage.step(1, self.rng)

    def _stage(self, step: str, teacher: Any, config: DistilConfig) -> Stage:
        parallel, batch = self.parallel, config.distill.batch
        torch.manual_seed(0)  # the same samples and networks in every trainer
        shape = (4 * batch, teacher.num_tokens)
        tokens = torch.randint(len(teacher.codebook), shape, device=parallel.device)
        labels = torch.randint(teacher.num_classes, shape[:1], device=parallel.device)
        # Tokens that lie ready: drawing them is the teacher's time, and make-data's.
        pool = Ready(tokens, labels)
        if step == "adaptation":
            trained = adapt_copy(teacher)
            parallel.prepare(trained)
            self.modules = {"teacher": trained}
            return AdaptationStage(
                trained, pool, config.adaptation, parallel=parallel, source=teacher
            )
        with torch.device(parallel.device):
            guidance = DD2Guidance.from_teacher(teacher, **dataclasses.asdict(config.network))
        self.modules = {"guidance": guidance}
        if not step.startswith("gts"):
            with torch.device(parallel.device):
                generator = DD2Generator.from_guidance(guidance)
                ema = DD2Generator.from_guidance(guidance).requires_grad_(False)
            self.modules |= {"generator": generator, "ema": ema}
        for network in self.modules.values():
            network.teacher = teacher
            parallel.prepare(network)
        score = TeacherScore(teacher, **dataclasses.asdict(config.score))
        if step.startswith("gts"):
            stage1 = config.stage1
            if step == "gts_head":
                stage1 = dataclasses.replace(stage1, head_steps=100)
            return GroundTruthScoreStage(guidance, score, pool, stage1, parallel=parallel)
        if step == "fcs":
            return GuidanceStage(step, 100, generator, guidance, config.distill, None, parallel)
        return CsdStage(
            step, 100, generator, guidance, ema, score, None, config.distill, None, parallel
        )


def adapt_copy(teacher: Any) -> Any:
    """An adapted teacher with the same weights, to be trained."""
    copy = type(teacher)(**teacher.config)
    copy.tokenizer = teacher.tokenizer
    copy.load_state_dict(teacher.state_dict())
    return copy.to(teacher.codebook.device)


def check_memory(model: str, device: str) -> None:
    """Skip a benchmark that would not fit."""
    if MODELS[model] * 1e9 > free_memory(device):
        pytest.skip(f"needs {MODELS[model]} GB of memory")


def call(trainer: Trainer, backend: str | None) -> Callable[[], Losses]:
    return lambda: trainer.step(backend)
