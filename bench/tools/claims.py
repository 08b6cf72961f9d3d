"""Claims of the paper on the digits: speed of training, steadiness, updates of the guidance
network, smoothness of the noise space.

    python bench/tools/claims.py --seed S --out bench/results/claims    about 25 minutes of one core
    python bench/tools/quality.py --claims bench/results/claims         the tables

* ``speed``: distances along the trainings of DD1 and DD2, by CPU seconds; ``lengths``, as in the
  paper, and ``lengths_dd1_start``, from DD1's regression: after short stages 2;
* ``steadiness``: the distance at the last twenty checkpoints of stage 2, with performance alignment
  and without, after the same first half and in the same CPU seconds;
* ``updates``: K guidance updates a generator update: the guidance network's error against one
  trained to convergence on the same generator, and the images' distance;
* ``smoothness``: path length in noise space.

A claim of a seed that is done is not made again. ``--work`` keeps trainings that several claims
need. With ``--students RUN...`` the path lengths of logit students of the bundled teacher are
measured instead, beside the bundled DD2.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ablations import (
    SAMPLES,
    STEP,
    VARIANTS,
    Snapped,
    features,
    generate,
    run_stage,
    teacher_features,
)
from dd2_fast import checkpoints
from dd2_fast.checkpoints.files import check_writable, write_atomic
from dd2_fast.losses import TeacherScore, add_noise, fcs_loss, flow_pairs
from dd2_fast.metrics import frechet_distance, perceptual_path_length
from dd2_fast.ops import nearest_code
from dd2_fast.sampling.sources import bundled_path
from dd2_fast.training.config import CsdConfig, RegressionConfig, Stage1Config
from dd2_fast.training.loop import Stage
from dd2_fast.training.recipes.stage2 import distillation_stages
from dd2_fast.training.samples.digits import load_digits
from dd2_fast.training.schedule import ramp
from dd2_fast.training.stages import (
    CsdStage,
    GroundTruthScoreStage,
    GuidanceStage,
    PairsStage,
    RegressionStage,
)
from trajectories import Clock, Seed, weights

# Steps between the averages of a training that are judged, and whole lengths of stage 2.
DD1_EVERY, DD2_EVERY, LENGTHS = 2000, 240, (100, 200)
# Time is counted in steps, whose cost was measured: other work inflates seconds as they are taken.
# Steadiness, in steps: 200 of the guidance network alone cost what 120 of stage 2 do.
ALIGN, INSTEAD, CHECKED, CHECK_EVERY, CHECKS = 200, 120, 480, 20, 20
# Generator updates by K for 20 CPU seconds; images of the last checkpoints are judged.
UPDATES = {1: 220, 2: 137, 4: 78, 8: 42}
LAST, LAST_EVERY = 6, 5
CONVERGED = 200  # updates of the guidance network on a frozen generator
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
EPSILONS = (1e-4, 1e-2, 1e-1)  # of the arc between two noises


class Judge:
    """Distances to the teacher's draws and to held-out images; every generator has the same noise
    and labels."""

    def __init__(self, models: dict[str, Any], data: Any, seed: int, samples: int) -> None:
        self.models, self.seed = SimpleNamespace(**models), seed
        self.labels = data.test_labels.repeat(samples // len(data.test_labels))
        self.draws, other = teacher_features(self.models, self.labels, seed, 2)
        with torch.no_grad():
            classifier = self.models.classifier
            self.real = torch.cat([classifier.features(p) for p in data.test_images.split(500)])
        self.teacher = self._distances(other)

    def _distances(self, found: Tensor) -> dict[str, float]:
        return {
            "fd_teacher": frechet_distance(found, self.draws),
            "fd": frechet_distance(found, self.real),
        }

    def __call__(self, generator: nn.Module, snap: bool = False) -> dict[str, float]:
        x = generate(self.models, generator.eval(), self.labels, self.seed)
        told = self._distances(features(self.models, x))
        if snap:
            codebook = self.models.tokenizer.codebook
            codes = self._distances(features(self.models, nearest_code(x, codebook)))
            told |= {f"{name}_codes": value for name, value in codes.items()}
        return told


def step_costs(found: Seed, rounds: int = 2) -> dict[str, float]:
    """CPU seconds of a step of every stage, the least of blocks of ten in turns, and of all pairs.

    In turns, so that whatever else the machine does is the same for all.
    """
    models, rng = found.models, torch.Generator().manual_seed(found.seed)
    score, pool = TeacherScore(models["teacher"]), models["pool"]
    start = found.along("dd2")["networks"]["start"]
    generator, ema = (found.network("ema", start["generator"]) for _ in range(2))
    guidance = found.network("guidance", start["guidance"])
    for network in (generator, ema, guidance):
        network.requires_grad_(True).train()
    config, first, pairs = CsdConfig(), Stage1Config(), found.config.pairs
    filled = copy.deepcopy(pool)
    stage1 = GroundTruthScoreStage(guidance, score, pool, first)
    stages: dict[str, tuple[Stage, int]] = {
        "head": (stage1, 0),
        "stage1": (stage1, first.head_steps),
        "regression": (RegressionStage(generator, score, pool, RegressionConfig(), ema=ema), 0),
        "guidance": (GuidanceStage("guidance", 100, generator, guidance, config), 0),
        "distill": (CsdStage("distill", 100, generator, guidance, ema, score, None, config), 0),
        "pairs": (PairsStage(filled, score, 100, pairs.ode_steps), 0),
    }
    costs = dict.fromkeys(stages, math.inf)
    for _ in range(rounds):
        for name, (stage, index) in stages.items():
            began = time.process_time()
            for i in range(10):
                stage.step(index + i, rng)
            costs[name] = min(costs[name], (time.process_time() - began) / 10)
    return {**costs, "pairs": costs["pairs"] * pairs.count / 100}


def stage2(found: Seed, name: str, steps: int) -> nn.Module:
    """The average of stage 2 of so many steps, with its whole schedule, from a variant's start."""
    start = found.start(name)
    generator, ema = (found.network("ema", start["generator"]) for _ in range(2))
    guidance = found.network("guidance", start["guidance"])
    for network in (generator, ema, guidance):
        network.requires_grad_(True).train()
    config, score = CsdConfig(steps=steps), TeacherScore(found.models["teacher"])
    run_stage(
        CsdStage("distill", steps, generator, guidance, ema, score, None, config),
        torch.Generator().manual_seed(found.seed),
    )
    return ema


def before_stage2(costs: dict[str, float], name: str) -> float:
    """CPU seconds of all that a variant does before, the drawing of the pool included: DD1's pairs,
    whose samples stage 1 takes."""
    config, first = CsdConfig(), Stage1Config()
    return (
        costs["pairs"]
        + first.head_steps * costs["head"]
        + first.steps * costs["stage1"]
        + VARIANTS[name].regression * costs["regression"]
        + config.guidance_start * costs["guidance"]
    )


def speed(found: Seed) -> dict[str, Any]:
    """Distances by CPU seconds along the trainings of DD1 and DD2."""
    judge = Judge(found.models, found.data, found.seed, SAMPLES)
    costs = found.once("costs", lambda: step_costs(found))
    told: dict[str, Any] = {"samples": SAMPLES, "teacher": judge.teacher, "costs": costs}
    ways = {
        "dd1": (costs["pairs"], costs["regression"], DD1_EVERY),
        "dd2": (before_stage2(costs, "dd2"), costs["distill"], DD2_EVERY),
    }
    for name, (before, cost, every) in ways.items():
        points = found.along(name)["points"]
        curve = [
            {
                "step": p["step"],
                "seconds": before + p["step"] * cost,
                "taken": p["seconds"],
                **judge(found.network("ema", p["weights"]), snap=True),
            }
            for p in points
            if p["step"] % every == 0 or p is points[-1]
        ]
        told[name] = {"before": before, "curve": curve}
        print(name, curve[-1], flush=True)
    return told


def lengths(found: Seed, name: str) -> dict[str, Any]:
    """Distances of a variant after whole stages 2 of several lengths."""
    judge = Judge(found.models, found.data, found.seed, SAMPLES)
    costs = found.once("costs", lambda: step_costs(found))
    before, points = before_stage2(costs, name), []
    for steps in LENGTHS:
        point = {"step": steps, "seconds": before + steps * costs["distill"]}
        points.append(point | judge(stage2(found, name, steps), snap=True))
        print(name, points[-1], flush=True)
    return {"samples": SAMPLES, "costs": costs, name: {"before": before, "lengths": points}}


def steadiness(found: Seed) -> dict[str, Any]:
    """The distances of the last checkpoints, of averages and raw weights, at constant rates."""
    judge = Judge(found.models, found.data, found.seed, 2000)
    half = found.along("dd2")["networks"]["half"]
    config = CsdConfig(
        steps=INSTEAD, align_steps=ALIGN, aligned_steps=CHECKED, hold=1.0, guidance_floor=1.0
    )
    told: dict[str, Any] = {"samples": 2000, "teacher": judge.teacher}
    for name, first in {"continued": "distill", "aligned": "align"}.items():
        networks = {k: found.network(k, half[k]) for k in ("generator", "guidance", "ema")}
        for network in networks.values():
            network.requires_grad_(True).train()
        score = TeacherScore(found.models["teacher"])
        stages = {s.name: s for s in distillation_stages(**networks, score=score, pool=None,
                                                         config=config)}  # fmt: skip
        clock, points = Clock(), []

        def watch(
            stage: Any, index: int, clock: Clock = clock, points: list[dict[str, Any]] = points
        ) -> None:
            done = index + 1
            if done > CHECKED - CHECKS * CHECK_EVERY and done % CHECK_EVERY == 0:
                pair = {"average": stage.ema, "raw": stage.generator}
                points.append(clock.paused(lambda: {k: weights(v) for k, v in pair.items()}))

        run_stage(stages[first], torch.Generator().manual_seed(found.seed))
        # The same random numbers for both in the steps that are checked.
        run_stage(stages["aligned"], torch.Generator().manual_seed(found.seed + 1), watch)
        told[name] = {"seconds": clock()}
        for kind in ("average", "raw"):
            rows = [judge(found.network("ema", point[kind])) for point in points]
            told[name][kind] = {k: [row[k] for row in rows] for k in judge.teacher}
        print(name, told[name]["seconds"], told[name]["raw"]["fd_teacher"], flush=True)
    return told


def converge(
    found: Seed, generator: nn.Module, guidance: nn.Module, config: CsdConfig
) -> nn.Module:
    """A guidance network trained long on a frozen generator, from ``guidance``."""
    network = found.network("guidance", guidance.state_dict()).requires_grad_(True).train()
    settings = dataclasses.replace(config, draws=4)
    stage = GuidanceStage("converged", CONVERGED, generator, network, settings)
    rng = torch.Generator().manual_seed(found.seed + 2)
    for index in range(CONVERGED):
        rate = config.guidance_rate * ramp(index, CONVERGED, warmup=20, hold=0.3, floor=0.01)
        stage.update.on_fresh(rate, rng)
    return network.eval()


@torch.no_grad()
def errors(found: Seed, generator: nn.Module, guidance: Any, converged: Any) -> dict[str, Any]:
    """Mean over tokens of squared velocities, at each of `TIMES`, on the generator's tokens.

    * error: ``|v - v'|^2``, of the guidance network and the converged one;
    * excess: of the guidance network's loss over the converged one's, which is ``error`` where the
      converged one is the posterior mean;
    * signal: ``|v' - v_teacher|^2``, of which the generator's update is made.
    """
    labels = found.data.test_labels.repeat(4)
    models = SimpleNamespace(**found.models)
    score, rng = TeacherScore(models.teacher), torch.Generator().manual_seed(found.seed + 3)
    told: dict[str, Any] = {name: [0.0] * len(TIMES) for name in ("error", "excess", "signal")}
    everything = generate(models, generator.eval(), labels, found.seed + 4)
    parts = list(zip(everything.split(500), labels.split(500), strict=True))
    for x, y in parts:
        noise = torch.randn(*x.shape[:2], len(TIMES), x.shape[2], generator=rng)
        t = torch.tensor(TIMES).expand(noise.shape[:3])
        x_t = add_noise(x, t, noise)
        v, better = (network.eval()(x_t, t, x, y) for network in (guidance, converged))
        wanted = score(x, y).predict(x_t, t, "velocity")
        values = {
            "error": (v - better).square().sum(-1),
            "excess": fcs_loss(v, x, noise) - fcs_loss(better, x, noise),
            "signal": (better - wanted).square().sum(-1),
        }
        for name, value in values.items():
            mean = (value.double().mean((0, 1)) / len(parts)).tolist()
            told[name] = [a + b for a, b in zip(told[name], mean, strict=True)]
    return told


def updates(found: Seed) -> dict[str, Any]:
    """For each K the guidance network's error and the images' mean distance over the last
    checkpoints, from the middle of stage 2, where K was 1, and at full rates: after as many
    generator updates as the largest K makes in its time, and after equal time."""
    judge = Judge(found.models, found.data, found.seed, 1000)
    half = found.along("dd2")["networks"]["half"]
    score = TeacherScore(found.models["teacher"])
    fewest = min(UPDATES.values())
    told: dict[str, Any] = {"samples": 1000, "teacher": judge.teacher, "times": TIMES}
    for count, steps in UPDATES.items():
        networks = {name: found.network(name, half[name]) for name in half}
        for network in networks.values():
            network.requires_grad_(True).train()
        config = CsdConfig(guidance_updates=count, hold=1.0, guidance_floor=1.0, warmup=20)
        kept: dict[int, dict[str, Any]] = {}

        def keep(stage: Any, index: int, kept: dict[int, dict[str, Any]] = kept) -> None:
            for end in (fewest, stage.steps):
                before, rest = divmod(end - index - 1, LAST_EVERY)
                if rest == 0 and 0 <= before < LAST:
                    parts = ("generator", "guidance", "ema")
                    kept[index + 1] = {k: weights(getattr(stage, k)) for k in parts}

        run_stage(
            CsdStage("distill", steps, **networks, score=score, pool=None, config=config),
            torch.Generator().manual_seed(found.seed),
            keep,
        )
        told[f"K={count}"] = []
        for end in sorted({fewest, steps}):
            frozen = found.network("generator", kept[end]["generator"]).eval().requires_grad_(False)
            guidance = found.network("guidance", kept[end]["guidance"])
            point = errors(found, frozen, guidance, converge(found, frozen, guidance, config))
            last = [kept[end - LAST_EVERY * i] for i in range(LAST)]
            for kind, name in {"raw": "generator", "average": "ema"}.items():
                rows = [judge(found.network("ema", states[name])) for states in last]
                point[kind] = {k: sum(row[k] for row in rows) / LAST for k in rows[0]}
            seconds = end * (STEP["distill"] + (count - 1) * STEP["guidance"])
            told[f"K={count}"].append({"updates": end, "seconds": seconds, **point})
            print(count, told[f"K={count}"][-1], flush=True)
    return told


class Flow(nn.Module):
    """The codes of DD1's map: what its regression is of."""

    def __init__(self, score: TeacherScore) -> None:
        super().__init__()
        self.score = score

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        return self.score.teacher.codebook[flow_pairs(noise, labels, self.score)]


class Walked:
    """A generator with its tokenizer, as ``perceptual_path_length`` takes it."""

    def __init__(self, models: Any, network: nn.Module) -> None:
        self.num_tokens, self.tokenizer = models.teacher.num_tokens, models.tokenizer
        self.network = network

    def __call__(self, noise: Tensor, labels: Tensor) -> Tensor:
        x: Tensor = self.network(noise, labels)
        return x


def path_lengths(
    models: Any, network: nn.Module, labels: Tensor, epsilons: Sequence[float]
) -> dict[str, Any]:
    """By epsilon, in the classifier's features and in pixels: mean and its standard error."""
    told: dict[str, Any] = {}
    for epsilon in epsilons:
        seen: dict[str, list[Tensor]] = {"features": [], "pixels": []}

        def distance(a: Tensor, b: Tensor, seen: dict[str, list[Tensor]] = seen) -> Tensor:
            of = models.classifier.features
            seen["features"].append((of(a) - of(b)).double().square().sum(1))
            seen["pixels"].append((a - b).mean(1).double().square().sum((1, 2)))
            return seen["features"][-1]

        walked = Walked(models, network)
        perceptual_path_length(walked, labels, distance, epsilon=epsilon, batch_size=500)
        told[f"{epsilon:g}"] = {}
        for name, parts in seen.items():
            values = torch.cat(parts) / epsilon**2
            error = float(values.std()) / math.sqrt(len(values))
            told[f"{epsilon:g}"][name] = {"mean": float(values.mean()), "error": error}
    return told


def all_lengths(
    models: Any, networks: dict[str, Any], labels: Tensor, coded: set[str]
) -> dict[str, Any]:
    """Of every generator, then with the nearest code of each token; ``coded`` are codes already,
    and an image of codes is constant in noise but for jumps, so it has no length at the least
    epsilon."""
    told: dict[str, Any] = {"samples": len(labels)}
    networks = {"flow": Flow(TeacherScore(models.teacher)), **networks}
    for name, network in networks.items():
        network.eval()
        if name in coded:
            told[name] = path_lengths(models, network, labels, EPSILONS[1:])
            continue
        told[name] = path_lengths(models, network, labels, EPSILONS)
        snapped = Snapped(network, models.tokenizer.codebook)
        told[f"{name}_codes"] = path_lengths(models, snapped, labels, EPSILONS[1:])
        print(name, told[name], flush=True)
    return told


def smoothness(found: Seed) -> dict[str, Any]:
    """Path lengths of DD1's and DD2's final averages."""
    networks = {
        name: found.network("ema", found.along(name)["points"][-1]["weights"])
        for name in ("dd1", "dd2")
    }
    labels = found.data.test_labels.repeat(4)
    return all_lengths(SimpleNamespace(**found.models), networks, labels, {"flow"})


def students(runs: list[Path]) -> dict[str, Any]:
    """Path lengths of the bundled DD2 and of logit students of its teacher."""
    bundle = checkpoints.load_bundle(bundled_path("digits"))
    networks = {"dd2": bundle.generator}
    for run in runs:
        student = checkpoints.load(run / "generator.safetensors")
        student.tokenizer = bundle.tokenizer
        networks[run.name] = student
    data = load_digits()
    labels = data.test_labels.repeat(SAMPLES // len(data.test_labels))
    return all_lengths(bundle, networks, labels, {"flow", *networks} - {"dd2"})


CLAIMS: dict[str, Callable[..., dict[str, Any]]] = {
    "speed": speed,
    "lengths": partial(lengths, name="dd2"),
    "lengths_dd1_start": partial(lengths, name="dd1_start"),
    "smoothness": smoothness,
    "steadiness": steadiness,
    "updates": updates,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/claims"))
    parser.add_argument("--work", type=Path, default=Path("runs/claims"), help="kept trainings")
    parser.add_argument("--only", nargs="*", choices=CLAIMS, default=list(CLAIMS))
    parser.add_argument("--students", nargs="+", type=Path, metavar="RUN")
    options = parser.parse_args()
    torch.set_num_threads(1)
    check_writable(options.out)

    def once(claim: str, name: str, make: Callable[[], dict[str, Any]], **more: Any) -> None:
        path = options.out / f"{claim}-{name}.json"
        if path.exists():
            return
        print(claim, name, flush=True)
        report = {"claim": claim, **more, **make()}
        write_atomic(path, (json.dumps(report, indent=1, sort_keys=True) + "\n").encode())

    if options.students:
        once("smoothness", "students", partial(students, options.students))
        return 0
    found = Seed(options.seed, options.work)
    for claim in options.only:
        once(claim, str(options.seed), partial(CLAIMS[claim], found), seed=options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
