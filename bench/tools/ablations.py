"""DD2, DD1 and the ablations of the paper's Table 4 on the digits, at equal training time.

    python bench/tools/ablations.py --seed S --out runs/ablations    about half an hour of one core
    python bench/tools/quality.py ... --ablations runs/ablations     the table

Every variant of a seed shares the tokenizer, the teacher and the classifier, and then has the same
CPU seconds of one thread (counted in steps, whose cost was measured; the seconds it took are
reported). A variant that is done is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dd2_fast.checkpoints.bundle import Bundle
from dd2_fast.checkpoints.files import check_writable, write_atomic
from dd2_fast.losses import TeacherScore
from dd2_fast.metrics import evaluate, frechet_distance
from dd2_fast.models import DD2Generator, DD2Guidance
from dd2_fast.ops import nearest_code
from dd2_fast.training.config import CsdConfig, RegressionConfig, Stage1Config
from dd2_fast.training.loop import Stage
from dd2_fast.training.recipes import digits
from dd2_fast.training.samples.digits import load_digits
from dd2_fast.training.stages import (
    CsdStage,
    GroundTruthScoreStage,
    GuidanceStage,
    RegressionStage,
)

# CPU seconds of a step of one thread, as measured; steps for 228 of them, 12 of which make pairs.
STEP = {"stage1": 0.050, "regression": 0.0274, "guidance": 0.055, "distill": 0.091}
DD1_ALONE, PAPER_CSD, STARTED_CSD = 7900, 2220, 1800
SAMPLES = 5000
# Is told of a stage, after its step of a number.
Watch = Callable[[Stage, int], None]


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a variant does; every field that is not given is as in the paper's method.

    ``snap``: judged a second time by the images of its nearest codes.
    """

    text: str
    csd: int = PAPER_CSD
    regression: int = 0
    auxiliary: float = 0.0
    target: str = "ground_truth"
    start_generator: bool = True
    start_guidance: bool = True
    snap: bool = False


VARIANTS = {
    "dd1": Variant("DD1: regression alone", csd=0, regression=DD1_ALONE, snap=True),
    "dd2": Variant("DD2 as in the paper"),
    "no_start_generator": Variant("without stage 1 for the generator", start_generator=False),
    "no_start_guidance": Variant("without stage 1 for the guidance", start_guidance=False),
    "ar_diffusion": Variant("stage 1 by plain AR diffusion, not GTS", target="sample"),
    "dd1_start": Variant("DD2 from DD1's regression", csd=STARTED_CSD, regression=1000, snap=True),
    "dd1_start_auxiliary": Variant(
        "the same with DD1's loss, weight 0.5 to 0", csd=STARTED_CSD, regression=1000, auxiliary=0.5
    ),
    "dd1_start_long": Variant(
        "DD2 from 3000 steps of regression, 1200 of CSD", csd=1200, regression=3000
    ),
}  # fmt: skip


def run_stage(stage: Stage, rng: torch.Generator, watch: Watch | None = None) -> None:
    if stage.steps:
        stage.prepare()
        for index in range(stage.steps):
            losses = stage.step(index, rng)
            if watch:
                watch(stage, index)
            if index % 200 == 0:
                print(f"  {stage.name} {index}", {k: round(float(v), 3) for k, v in losses.items()})
        stage.finish()


def make_base(
    config: digits.DigitsConfig, watch: Watch | None = None
) -> tuple[dict[str, Any], Any]:
    """Tokenizer, classifier, teacher and pairs of a seed."""
    models, data = digits.build_models(config), load_digits()
    for number, stage in enumerate(digits.build_stages(config, models, data)):
        if stage.name in ("tokenizer", "classifier", "teacher", "pairs"):
            rng = torch.Generator().manual_seed(1_000_003 * (number + 1) + config.seed)
            run_stage(stage, rng, watch)
    return models, data


def train(
    variant: Variant, models: dict[str, Any], seed: int, watch: Watch | None = None
) -> tuple[DD2Generator, float]:
    """The average generator of a variant and its CPU seconds."""
    teacher, pool, score = models["teacher"], models["pool"], TeacherScore(models["teacher"])
    rng = torch.Generator().manual_seed(seed)
    network = dict(head_width=96, head_depth=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        guidance, fresh = (DD2Guidance.from_teacher(teacher, **network) for _ in range(2))
    began = time.process_time()
    if variant.csd:
        config = Stage1Config(target=variant.target)
        run_stage(GroundTruthScoreStage(guidance, score, pool, config), rng, watch)
    start = guidance if variant.csd and variant.start_generator else fresh
    generator, ema = (DD2Generator.from_guidance(start) for _ in range(2))
    if not variant.start_guidance:
        guidance.load_state_dict(fresh.state_dict())
    regression = RegressionConfig(steps=variant.regression)
    averaged = None if variant.csd else ema
    run_stage(
        RegressionStage(
            generator, score, pool, regression, ema=averaged, ema_decay=CsdConfig.ema_decay
        ),
        rng,
        watch,
    )
    if variant.csd:
        config = CsdConfig(steps=variant.csd, auxiliary=variant.auxiliary)
        run_stage(
            GuidanceStage("guidance", config.guidance_start, generator, guidance, config),
            rng,
            watch,
        )
        ema.load_state_dict(generator.state_dict())
        pairs = pool if variant.auxiliary else None
        run_stage(
            CsdStage("distill", config.steps, generator, guidance, ema, score, pairs, config),
            rng,
            watch,
        )
    return ema.eval().requires_grad_(False), time.process_time() - began


@torch.no_grad()
def features(models: Any, tokens_or_x: Tensor) -> Tensor:
    """The classifier's features of the images of tokens or embeddings."""
    decode, embed = models.tokenizer.decode, models.tokenizer.embed
    x = tokens_or_x if tokens_or_x.is_floating_point() else embed(tokens_or_x)
    return torch.cat([models.classifier.features(decode(part)) for part in x.split(500)])


@torch.no_grad()
def teacher_features(models: Any, labels: Tensor, seed: int, count: int) -> list[Tensor]:
    """Features of ``count`` of the teacher's draws."""
    draws = (models.teacher.sample(labels, seed=seed + 10 + i) for i in range(count))
    return [features(models, tokens) for tokens in draws]


@torch.no_grad()
def generate(models: Any, generator: nn.Module, labels: Tensor, seed: int) -> Tensor:
    """Embeddings of the generator, the noise the seed's."""
    noise = torch.randn(
        len(labels), models.teacher.num_tokens, models.tokenizer.codebook.shape[1],
        generator=torch.Generator().manual_seed(seed + 99),
    )  # fmt: skip
    parts = zip(noise.split(500), labels.split(500), strict=True)
    return torch.cat([generator(*part) for part in parts])


def distance_to_teacher(bundle: Bundle, labels: Tensor, seed: int) -> dict[str, float]:
    """Fréchet distance of the generator's features, and of another draw, to the teacher's draws."""
    draws = teacher_features(bundle, labels, seed, 2)
    own = features(bundle, generate(bundle, bundle.generator, labels, seed))
    return {
        "fd_teacher": frechet_distance(own, draws[0]),
        "fd_teacher_floor": frechet_distance(draws[1], draws[0]),
    }


class Snapped(nn.Module):
    """A generator whose every token is the nearest code."""

    def __init__(self, generator: DD2Generator, codebook: Tensor) -> None:
        super().__init__()
        self.generator, self.codebook = generator, codebook

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        return self.codebook[nearest_code(self.generator(noise, labels), self.codebook)]


def judge(
    models: dict[str, Any], generator: DD2Generator, data: Any, seed: int, snap: bool
) -> dict[str, Any]:
    names = ("tokenizer", "teacher", "classifier")
    for name in names:
        models[name].eval().requires_grad_(False)
    parts = {name: models[name] for name in names}
    labels = data.test_labels.repeat(SAMPLES // len(data.test_labels))

    def rows(generator: nn.Module) -> dict[str, Any]:
        bundle = Bundle(**parts, generator=generator, stage1=None, settings={})
        found: dict[str, Any] = evaluate(bundle, data, num_samples=SAMPLES, seed=seed)
        found["one_step"].update(distance_to_teacher(bundle, labels, seed))
        return found

    found = rows(generator)
    if snap:
        found["snapped"] = rows(Snapped(generator, models["tokenizer"].codebook))["one_step"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    check_writable(arguments.out)
    seed = arguments.seed
    paths = {name: arguments.out / f"{name}-{seed}.json" for name in arguments.only}
    missing = {name: path for name, path in paths.items() if not path.exists()}
    if not missing:
        return 0
    models, data = make_base(digits.DigitsConfig(seed=seed))
    for name, path in missing.items():
        print(name, flush=True)
        generator, seconds = train(VARIANTS[name], models, seed)
        report = {
            "variant": name,
            "text": VARIANTS[name].text,
            "seed": seed,
            "cpu_seconds": round(seconds, 1),
            "metrics": judge(models, generator, data, seed, VARIANTS[name].snap),
        }
        write_atomic(path, (json.dumps(report, indent=1, sort_keys=True) + "\n").encode())
        print(name, round(seconds), report["metrics"]["one_step"], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
