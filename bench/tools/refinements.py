"""What betters the logit student, and DD2, of the digits after their training, at equal CPU time.

    python bench/tools/refinements.py --student RUN --seed S --out bench/results/refinements
    python bench/tools/quality.py --refinements bench/results/refinements        the table

``RUN`` is of ``dd2-fast train digits_logits --seed S``. Every variant starts from its average, or
from the bundled DD2, and has `SECONDS` of one thread, counted in steps; ``--costs`` measures what
steps cost, in turn. A variant of a seed that is done is not made again; ``--work`` keeps weights.

* divergences: KL(teacher | student), as in the student's training, the reverse, Jensen-Shannon;
* adversarial: a small discriminator reads the teacher's features and the codes; the student's
  have a straight-through gradient from their expectation (Soft-Di[M]O, arXiv 2509.22925);
* ratio: weights h(r), r the teacher's density over the generator's (f-distill, 2502.15681);
* drift: features move to real ones of the class, away from generated ones (2602.04770).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ablations import run_stage
from dd2_fast import checkpoints
from dd2_fast.checkpoints.files import check_writable, write_atomic
from dd2_fast.losses import TeacherScore, csd_loss, draw_noisy
from dd2_fast.losses.target import TeacherDistribution
from dd2_fast.metrics.image_report import evaluate_images
from dd2_fast.models import DD2Guidance
from dd2_fast.models.sampling import draw_tokens
from dd2_fast.ops import nearest_code
from dd2_fast.sampling.sources import bundled_path
from dd2_fast.training.config import CsdConfig
from dd2_fast.training.loop import Losses, Stage
from dd2_fast.training.schedule import adam, ramp, set_rate, update_ema
from dd2_fast.training.stages import CsdStage, GuidanceStage
from passes import Passes
from refinement_losses import (
    Discriminator,
    divergence,
    drift_loss,
    ratio_weights,
    straight_through,
)
from trajectories import Seed

SECONDS = 40
SAMPLES, EVALUATIONS = 5000, (0, 1)  # the seeds of evaluations
RATE = {"student": 3e-4, "dd2": 2e-4}  # of Adam; 0.3 of what the training had
BATCH, CLASSES, POSITIVES = 64, 4, 64  # of drift: classes of a batch, real images of each
CATCH_UP = 500  # steps of DD2's guidance network, which is not bundled, before all else


@dataclasses.dataclass(frozen=True)
class Variant:
    """``share``: of the own loss's gradient at the output, what the added one's norm is."""

    text: str
    step: float  # CPU seconds, as --costs measured them
    network: str = "student"
    own: str = "forward"
    added: str = ""
    real: str = ""  # what the added loss takes for real: the teacher's "draws", or "digits"
    share: float = 0.0
    whole: bool = False  # whether the discriminator judges whole images, not tokens
    weight: str = ""  # h
    seconds: float = SECONDS
    temperatures: tuple[float, ...] = (1.0,)  # that it is judged at


def _adversarial(text: str, share: float = 0.3, real: str = "digits", **rest: Any) -> Variant:
    text = f"{text}, {real}" + (f", share {share:g}" if share != 0.3 else "")
    return Variant(text, 0.079, added="adversarial", real=real, share=share, **rest)


def _drift(real: str) -> Variant:
    return Variant(f"drift, {real}", 0.063, added="drift", real=real, share=0.3)


def _drift_alone(real: str) -> Variant:
    text = f"drift alone, {real}"
    return Variant(text, 0.076, "dd2", own="", added="drift", real=real, share=1.0)


def _csd_ratio(text: str, weight: str) -> Variant:
    return Variant(text, 0.2, "dd2", real="draws", weight=weight)


_LONG, _COOLER = 3 * SECONDS, (1.0, 0.9)
VARIANTS = {
    "plain": Variant("its own loss, KL(teacher, student)", 0.046),
    "reverse": Variant("KL(student, teacher)", 0.046, own="reverse"),
    "symmetric": Variant("Jensen-Shannon", 0.046, own="symmetric"),
    "ratio": Variant("KL weighted by r", 0.065, real="draws", weight="forward"),
    "adversarial": _adversarial("adversarial", real="draws"),
    "adversarial_real": _adversarial("adversarial"),
    "adversarial_more": _adversarial("adversarial", 1.0),
    "adversarial_whole": _adversarial("adversarial of whole images", 1.0, whole=True),
    "adversarial_symmetric": _adversarial("Jensen-Shannon, adversarial", own="symmetric"),
    "drift": _drift("draws"),
    "drift_real": _drift("digits"),
    "plain_long": Variant("its own loss, long", 0.046, seconds=_LONG, temperatures=_COOLER),
    "symmetric_long": Variant("Jensen-Shannon, long", 0.046, own="symmetric", seconds=_LONG),
    "adversarial_long": _adversarial("adversarial, long", seconds=_LONG, temperatures=_COOLER),
    "adversarial_symmetric_long": _adversarial(
        "Jensen-Shannon, adversarial, long", own="symmetric", seconds=_LONG
    ),
    "csd": Variant("its own loss, CSD", 0.16, "dd2"),
    "csd_ratio": _csd_ratio("CSD weighted by r", "forward"),
    "csd_ratio_symmetric": _csd_ratio("CSD weighted by r / (1 + r)", "symmetric"),
    "dd2_drift": _drift_alone("draws"),
    "dd2_drift_real": _drift_alone("digits"),
}


class Real:
    """Codes and the teacher's features of images that pass for real."""

    @torch.no_grad()
    def __init__(self, teacher: Any, tokens: Tensor, labels: Tensor) -> None:
        parts = zip(tokens.split(500), labels.split(500), strict=True)
        self.x = teacher.codebook[tokens]
        self.features = torch.cat([teacher.backbone(teacher.codebook[q], y) for q, y in parts])
        self.of_class = [(labels == c).nonzero()[:, 0] for c in range(teacher.num_classes)]

    def like(self, labels: Tensor, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Codes ``[G, count, n, C]`` and features of random images of classes ``labels [G]``."""
        of = [self.of_class[c] for c in labels.tolist()]
        rows = torch.stack([i[torch.randint(len(i), (count,), generator=rng)] for i in of])
        return self.x[rows], self.features[rows]


class Refinement(Stage):
    """A network on its own loss, an added one, or both."""

    def __init__(self, steps: int, variant: Variant, network: Any, score: TeacherScore,
                 real: Real | None, seed: int) -> None:  # fmt: skip
        super().__init__("refinement", steps, batch=BATCH)
        self.variant, self.network, self.score, self.real = variant, network, score, real
        self.ema = copy.deepcopy(network)
        self.optimizer = adam(network, 1.0, (0.9, 0.99))
        teacher: Any = score.teacher
        width = teacher.backbone.width + (teacher.codebook.shape[1] if variant.added else 0)
        self.discriminator = Discriminator(width, seed, whole=variant.whole)

    def step(self, index: int, rng: torch.Generator) -> Losses:
        variant, teacher = self.variant, self.score.teacher
        classes = CLASSES if variant.added == "drift" else BATCH
        labels = torch.randint(10, (classes,), generator=rng).repeat_interleave(BATCH // classes)
        shape = BATCH, self.network.num_tokens, self.network.dimension
        noise = torch.randn(shape, generator=rng)
        if variant.network == "student":
            output = self.network(noise, labels, True)
            tokens = self.network.tokens(noise, output.detach()).clamp(min=0)
            x = straight_through(tokens, output if variant.added else output.detach(),
                                 teacher.codebook)  # fmt: skip
        else:
            output = x = self.network(noise, labels)
        features = teacher.backbone(x, labels)
        terms: dict[str, Tensor] = {}
        gradient = torch.zeros_like(output)
        if variant.own:
            gradient, terms[variant.own] = self._own(output, features.detach(), labels, rng)
        if variant.added:
            added = getattr(self, f"_{variant.added}")(x, features, labels, rng, terms)
            (other,) = torch.autograd.grad(added, output)
            size = gradient.norm() if variant.own else 1.0
            gradient = gradient + variant.share * size / (other.norm() + 1e-12) * other
            terms[variant.added] = added.detach()
        set_rate(self.optimizer, RATE[variant.network] * ramp(index, self.steps, warmup=50))
        self.optimizer.zero_grad()
        output.backward(gradient)
        self.optimizer.step()
        update_ema(self.ema, self.network, index, 0.997)
        return terms

    def _own(self, logits: Tensor, features: Tensor, labels: Tensor,
             rng: torch.Generator) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The gradient in the logits, and the loss."""
        teacher: Any = self.score.teacher
        distribution = TeacherDistribution(teacher.codebook, teacher.classifier(features))
        loss = divergence(self.variant.own, logits, distribution)
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=bool(self.variant.added))
        if self.variant.weight:
            assert self.real is not None
            # A feature is a function of the tokens before it, of which the expectation is.
            real = self.real.like(labels, 1, rng)[1][:, 0]
            self.discriminator.update(real, features)
            weights = ratio_weights(self.discriminator(features), self.variant.weight)
            gradient = weights[..., None] * gradient
        return gradient, loss.detach()

    def _adversarial(self, x: Tensor, features: Tensor, labels: Tensor, rng: torch.Generator,
                     terms: dict[str, Tensor]) -> Tensor:  # fmt: skip
        assert self.real is not None
        codes, seen = (part[:, 0] for part in self.real.like(labels, 1, rng))
        made = torch.cat([features, x], -1)
        terms.update(self.discriminator.update(torch.cat([seen, codes], -1), made))
        return F.softplus(-self.discriminator(made)).mean()

    def _drift(self, x: Tensor, features: Tensor, labels: Tensor, rng: torch.Generator,
               terms: dict[str, Tensor]) -> Tensor:  # fmt: skip
        assert self.real is not None
        codes, seen = self.real.like(labels[:: BATCH // CLASSES], POSITIVES, rng)
        by_class = (CLASSES, -1)
        of_codes = drift_loss(x.flatten(1).unflatten(0, by_class), codes.flatten(2))
        return of_codes + drift_loss(features.mean(1).unflatten(0, by_class), seen.mean(2))


class WeightedCsd(CsdStage):
    """CSD, its loss of every noisy token weighted by a density ratio of noisy tokens."""

    def __init__(self, *arguments: Any, weight: str, real: Real, seed: int) -> None:
        super().__init__("distill", *arguments)
        self.weight, self.real = weight, real
        self.rng = torch.Generator().manual_seed(seed)
        teacher: Any = self.score.teacher
        width = teacher.backbone.width + teacher.codebook.shape[1] + 1
        self.discriminator = Discriminator(width, seed)

    def _seen(self, features: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        every = features[:, :, None].expand(*x_t.shape[:3], features.shape[-1])
        return torch.cat([every, x_t, t[..., None]], -1)

    def _distillation(self, x: Tensor, labels: Any, random: Any, measure: bool) -> Any:
        config, prefix = self.config, x.detach()
        teacher: Any = self.score.teacher
        distribution = self.score(prefix, labels)
        with torch.no_grad():
            x_t, t, _ = draw_noisy(prefix, config.draws, self.times, random)
            fake_x0 = self.guidance.x0(x_t, t, self.guidance.features(prefix, labels))
            # The prefix by its nearest codes: vectors between them would tell it from a real one.
            tokens = nearest_code(prefix, teacher.codebook)
            made = self._seen(teacher.backbone(teacher.codebook[tokens], labels), x_t, t)
            codes, features = (part[:, 0] for part in self.real.like(labels, 1, self.rng))
            real = self._seen(features, *draw_noisy(codes, config.draws, self.times, random)[:2])
        settings = dict(objective="dmd", weight_power=config.weight_power)
        loss = csd_loss(x, x_t, t, fake_x0, distribution, **settings)
        terms = self.discriminator.update(real, made)
        with torch.no_grad():
            weights = ratio_weights(self.discriminator(made), self.weight)
        return (weights * loss).mean(), {"csd": loss.mean(), **terms}


class Refined(Seed):
    """Of a seed, the networks that variants start from, and what they make of them."""

    def __init__(self, seed: int, folder: Path, student: Path) -> None:
        super().__init__(seed, folder)
        self.bundle = checkpoints.load_bundle(bundled_path("digits"))
        for part in (self.bundle.teacher, self.bundle.tokenizer, self.bundle.classifier):
            part.eval().requires_grad_(False)
        own = checkpoints.load(student / "generator.safetensors")
        own.tokenizer = self.bundle.tokenizer
        self.started = {"student": own, "dd2": self.bundle.generator}
        self.score = TeacherScore(self.bundle.teacher)
        self.kept: dict[str, Real] = {}

    def real(self, kind: str) -> Real | None:
        teacher = self.bundle.teacher
        if kind and kind not in self.kept:
            labels = self.data.train_labels if kind == "digits" else torch.arange(SAMPLES) % 10
            if kind == "digits":
                tokens = self.bundle.tokenizer.encode(self.data.train_images)
            else:
                tokens = draw_tokens(teacher, labels, seed=500, cfg=None)
            self.kept[kind] = Real(teacher, tokens, labels)
        return self.kept.get(kind)

    def guidance(self) -> DD2Guidance:
        """From stage 1's weights, on what the bundled DD2 makes."""
        stage1, generator = self.bundle.stage1, self.started["dd2"]
        sizes = {k: stage1.config[k] for k in ("head_width", "head_depth")}
        guidance = DD2Guidance.from_teacher(self.bundle.teacher, **sizes)

        def caught_up() -> dict[str, Tensor]:
            guidance.load_state_dict(stage1.state_dict())
            guidance.requires_grad_(True).train()
            stage = GuidanceStage("guidance", CATCH_UP, generator, guidance, CsdConfig())
            run_stage(stage, torch.Generator().manual_seed(0))
            return guidance.state_dict()

        guidance.load_state_dict(self.once("guidance", caught_up))
        return guidance.requires_grad_(True).train()

    def stage(self, variant: Variant, steps: int) -> Any:
        network = copy.deepcopy(self.started[variant.network]).requires_grad_(True).train()
        real = self.real(variant.real)
        if variant.network == "student" or not variant.own:
            return Refinement(steps, variant, network, self.score, real, self.seed)
        rate = RATE["dd2"]
        config = CsdConfig(steps=steps, generator_rate=rate, guidance_rate=1.5e-3 * rate / 7e-4)
        networks = network, self.guidance(), copy.deepcopy(network), self.score, None, config
        if not variant.weight:
            return CsdStage("distill", steps, *networks)
        return WeightedCsd(steps, *networks, weight=variant.weight, real=real, seed=self.seed)

    def train(self, name: str, steps: int) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            began = time.process_time()
            stage = self.stage(VARIANTS[name], steps)
            run_stage(stage, torch.Generator().manual_seed(1000 + self.seed))
            seconds = time.process_time() - began
            return {"weights": stage.ema.state_dict(), "cpu_seconds": seconds, "steps": steps}

        print(name, self.seed, flush=True)
        found: dict[str, Any] = self.once(name, make)
        return found

    def costs(self) -> dict[str, float]:
        """CPU seconds of a step of every variant, the median of some, in turn."""
        stages = {name: self.stage(variant, 1000) for name, variant in VARIANTS.items()}
        taken: dict[str, list[float]] = {name: [] for name in stages}
        rng = torch.Generator().manual_seed(0)
        for index in range(24):
            for name, stage in stages.items():
                began = time.process_time()
                stage.step(index, rng)
                taken[name].append(time.process_time() - began)
        return {name: sorted(found[4:])[10] for name, found in taken.items()}

    def judge(self, networks: dict[str, Any], seed: int, samples: int) -> dict[str, Any]:
        """Rows by network and passes, and the teacher's; ``copies`` is the share of images that are
        a training digit, token by token."""
        ways: dict[str, Passes] = {}
        for name, network in networks.items():
            network.eval().requires_grad_(False)
            ways[f"{name}+1"] = Passes(network, self.score, 0, None)
            if seed == EVALUATIONS[0]:
                ways[f"{name}+2"] = Passes(network, self.score, 1, ways[f"{name}+1"])
        bundle, data = self.bundle, self.data
        told = evaluate_images(
            bundle.tokenizer, data.test_images.split(250), data.test_labels,
            classifier=bundle.classifier, teacher=bundle.teacher, generators=ways,
            samples=samples, teacher_steps=(), seed=seed,
        )["rows"]  # fmt: skip
        known = {tuple(q) for q in bundle.tokenizer.encode(data.train_images).tolist()}
        for name, way in ways.items():
            tokens = torch.cat([q for q in way.kept.values() if len(q) > 1]).tolist()
            told[name]["copies"] = sum(tuple(q) in known for q in tokens) / len(tokens)
        return {name: row for name, row in told.items() if "+" in name or name == "teacher"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--student", type=Path, required=True, metavar="RUN")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/refinements"))
    parser.add_argument("--work", type=Path, default=Path("runs/refinements"), help="weights")
    parser.add_argument("--only", nargs="*", choices=["start", *VARIANTS])
    parser.add_argument("--steps", type=int, help="instead of what fits the time")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--costs", action="store_true", help="of a step, alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = Refined(options.seed, options.work, options.student)
    if options.costs:
        print(json.dumps(found.costs(), indent=1))
        return 0
    check_writable(options.out)
    names = options.only or ["start", *VARIANTS]
    names = [n for n in names if not (options.out / f"{n}-{options.seed}.json").exists()]
    networks, told = {}, {}
    for name in names:
        if name == "start":
            student = found.started["student"]
            networks |= {"start": student, "start, temperature 0.9": student.at_temperature(0.9)}
            networks["start, dd2"] = found.started["dd2"]
            told[name] = {"text": "before", "steps": 0, "cpu_seconds": 0.0}
            continue
        variant = VARIANTS[name]
        made = found.train(name, options.steps or round(variant.seconds / variant.step))
        network = copy.deepcopy(found.started[variant.network])
        network.load_state_dict(made.pop("weights"))
        networks[name] = network
        for t in variant.temperatures[1:]:
            networks[f"{name}, temperature {t:g}"] = network.at_temperature(t)
        told[name] = {**dataclasses.asdict(variant), **made}
    rows = {seed: found.judge(networks, seed, options.samples) for seed in EVALUATIONS if names}
    for name, report in told.items():
        report["seed"] = options.seed
        report["rows"] = {
            seed: {key: row for key, row in of.items() if key.split(",")[0].split("+")[0] == name}
            for seed, of in rows.items()
        }
        report["teacher"] = {seed: of["teacher"] for seed, of in rows.items()}
        path = options.out / f"{name}-{options.seed}.json"
        write_atomic(path, (json.dumps(report, indent=1, sort_keys=True) + "\n").encode())
        for key, row in report["rows"][EVALUATIONS[0]].items():
            print(key, {k: round(v, 3) for k, v in row.items()}, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
