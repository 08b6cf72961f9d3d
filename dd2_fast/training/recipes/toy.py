"""Toys whose answer is known exactly: a teacher that is a table, judged by total variation."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoints import save
from ...losses import TeacherScore
from ...models import DD2Generator, DD2Guidance, TableTeacher
from ...ops import nearest_code
from ..config import Checked, Count, CsdConfig, PairsConfig, RegressionConfig, Stage1Config
from ..loop import Stage
from ..samples.pool import PairPool
from ..stages import GroundTruthScoreStage, PairsStage, RegressionStage
from .running import Made, carry_out_alone
from .stage2 import copy_weights, distillation_stages
from .watching import WatchConfig

KINDS = ("pair", "random")


@dataclass(frozen=True)
class ToyNetworkConfig:
    """Size of the generator and the guidance network."""

    width: int = 48
    layers: int = 2
    heads: int = 4
    head_width: int = 64
    head_depth: int = 2


@dataclass(frozen=True)
class ToyConfig(Checked):
    """Settings of a toy.

    ``kind`` is ``"pair"``, two tokens {(0,0),(1,1)}, or ``"random"``, a random correlated table of
    ``num_tokens`` tokens and 4 codes drawn from ``table_seed``. There are no images to ``watch``.
    """

    kind: str = "pair"
    seed: Count = 0
    table_seed: Count = 0
    num_tokens: int = 3
    network: ToyNetworkConfig = field(default_factory=ToyNetworkConfig)
    pairs: PairsConfig = PairsConfig(count=20000, batch=5000)
    stage1: Stage1Config = Stage1Config(head_steps=50, steps=200, batch=256, rate=2e-3)
    regression: RegressionConfig = RegressionConfig(steps=500, batch=256, rate=2e-3)
    distill: CsdConfig = CsdConfig(
        steps=600,
        guidance_start=50,
        guidance_updates=3,
        batch=256,
        generator_rate=1e-3,
        guidance_rate=2e-3,
        weight_power=0.0,
        generator_time_density="linear",
        ema_decay=0.99,
    )
    evaluation_samples: int = 100_000
    watch: WatchConfig = WatchConfig(save_every=30.0)
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if not 2 <= self.num_tokens <= 6:
            raise ValueError(f"num_tokens: expected 2 to 6, got {self.num_tokens}")


def make_teacher(config: ToyConfig) -> TableTeacher:
    """The table teacher: codes ±1 on a line for the pair, the corners (±1, ±1) otherwise."""
    if config.kind == "pair":
        codebook = torch.tensor([[-1.0], [1.0]])
        return TableTeacher(
            num_tokens=2, vocabulary=2, dimension=1, joint=torch.eye(2), codebook=codebook
        )
    codebook = torch.cartesian_prod(torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, 1.0]))
    rng = torch.Generator().manual_seed(config.table_seed)
    shape = [len(codebook)] * config.num_tokens
    joint = (2.0 * torch.randn(shape, generator=rng, dtype=torch.float64)).exp()
    return TableTeacher(
        num_tokens=config.num_tokens, vocabulary=4, dimension=2, joint=joint, codebook=codebook
    )


def set_prediction(joint: Tensor) -> Tensor:
    """The product of the marginals of ``joint [V] * n``: every token drawn on its own."""
    product = torch.ones((), dtype=joint.dtype)
    for i in range(joint.ndim):
        others = [axis for axis in range(joint.ndim) if axis != i]
        product = product[..., None] * joint.sum(others)
    return product


@torch.no_grad()
def generator_joint(
    generator: DD2Generator, codebook: Tensor, samples: int, seed: int, batch: int = 5000
) -> Tensor:
    """Frequencies ``[V] * n`` of the generator's outputs snapped to their nearest codes."""
    rng = torch.Generator().manual_seed(seed)
    vocabulary, n = codebook.shape[0], generator.num_tokens
    counts = torch.zeros(vocabulary**n, dtype=torch.float64)
    for start in range(0, samples, batch):
        size = min(batch, samples - start)
        noise = torch.randn(size, n, generator.dimension, generator=rng)
        tokens = nearest_code(generator(noise, torch.zeros(size, dtype=torch.int64)), codebook)
        index = torch.zeros(size, dtype=torch.int64)
        for i in range(n):
            index = index * vocabulary + tokens[:, i]
        counts += torch.bincount(index, minlength=vocabulary**n)
    return (counts / samples).reshape([vocabulary] * n)


def total_variation(p: Tensor, q: Tensor) -> float:
    """``sum |p - q| / 2``."""
    return float((p - q).abs().sum() / 2)


def run(config: ToyConfig, out: Path, *, progress: bool = True) -> Path:
    """Distil the table and write the models and ``run.json`` (with the distances) to ``out``.

    Under torchrun the first process does, and the others wait.

    Raises:
        ValueError: an interrupted run has other settings. FileExistsError: ``out`` is finished.
        OSError: ``out`` cannot be written, or another run has it.
        FloatingPointError: a loss is not finite.
    """
    out, began = Path(out), time.monotonic()

    def make() -> Made:
        teacher, models = build_models(config)

        def write() -> dict[str, Any]:
            metrics = evaluate_toy(config, teacher, models)
            for name, model in (("generator", models["ema"]), ("teacher", teacher)):
                save(out / f"{name}.safetensors", model, {"recipe": "toy", "seed": config.seed})
            return {"metrics": metrics}

        return Made(models, lambda done: build_stages(config, teacher, models), write)

    parts = ("generator", "teacher")
    report = carry_out_alone("toy", config, out, make, parts=parts, progress=progress)
    if report is not None and progress:
        print(", ".join(f"{name} {value:.4f}" for name, value in report["metrics"].items()))
        print(f"{time.monotonic() - began:.1f} s")
    return out


def evaluate_toy(
    config: ToyConfig, teacher: TableTeacher, models: dict[str, Any]
) -> dict[str, float]:
    """Total variation to the teacher's joint: set prediction, one step, stage 1 in one step."""
    exact = teacher.joint()
    samples, seed = config.evaluation_samples, config.seed + 1

    def distance(generator: DD2Generator) -> float:
        return total_variation(generator_joint(generator, teacher.codebook, samples, seed), exact)

    return {
        "set_prediction": total_variation(set_prediction(exact), exact),
        "one_step": distance(models["ema"]),
        "stage1": distance(models["stage1"]),
    }


def build_models(config: ToyConfig) -> tuple[TableTeacher, dict[str, Any]]:
    """The teacher and every trained model, initialised from the seed."""
    teacher = make_teacher(config)
    dimension = teacher.codebook.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        guidance = DD2Guidance(
            num_tokens=teacher.num_tokens,
            dimension=dimension,
            num_classes=teacher.num_classes,
            **dataclasses.asdict(config.network),
        )
        names = ("stage1", "generator", "ema")
        models: dict[str, Any] = {name: DD2Generator.from_guidance(guidance) for name in names}
    models["guidance"] = guidance
    models["pool"] = PairPool(config.pairs.count, teacher.num_tokens, dimension)
    return teacher, models


def build_stages(config: ToyConfig, teacher: TableTeacher, models: dict[str, Any]) -> list[Stage]:
    """Pairs, stage 1, regression and stage 2 over the table teacher."""
    guidance, generator, pool = models["guidance"], models["generator"], models["pool"]
    score = TeacherScore(teacher)

    def start_generator() -> None:
        copy_weights(guidance, models["stage1"], generator, models["ema"])

    return [
        PairsStage(pool, score, config.pairs.batch, config.pairs.ode_steps),
        GroundTruthScoreStage(guidance, score, pool, config.stage1),
        RegressionStage(generator, score, pool, config.regression, start_generator),
        *distillation_stages(generator, guidance, models["ema"], score, pool, config.distill),
    ]
