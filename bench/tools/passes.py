"""One-step generators of a teacher, with Jacobi passes of the teacher after them.

    python bench/tools/passes.py digits RUN... --out bench/results/passes/digits.json
    python bench/tools/passes.py fashion RUN... --data IDX_FOLDER --samples 3000 --out ...
    python bench/tools/passes.py TEACHER_RUN RUN... --data IDX_FOLDER --out ...
    python bench/tools/quality.py --passes bench/results/passes        the tables

``RUN`` are folders of ``dd2-fast train`` over that teacher, which is a bundled one or that of a run
over images (``train teacher``), with DD1's network where they have one; guidance and filters are
theirs, temperatures of logit students alone. The columns are those of
``dd2_fast.metrics.evaluate_images``; ``ms`` are CPU milliseconds of one image by ``Sampler``, its
least of some, on one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dd2_fast import checkpoints
from dd2_fast.checkpoints.files import write_atomic
from dd2_fast.losses import TeacherScore
from dd2_fast.metrics.image_report import evaluate_images
from dd2_fast.models.sampling import draw_tokens
from dd2_fast.ops import nearest_code
from dd2_fast.sampling import Sampler
from dd2_fast.sampling.sources import bundled_path
from dd2_fast.training.config import ExecutionConfig
from dd2_fast.training.image_config import DataConfig
from dd2_fast.training.parallel import Parallel
from dd2_fast.training.recipes.image_evaluation import _Parts
from dd2_fast.training.samples.digits import load_digits
from dd2_fast.training.samples.image_batches import ImageData
from dd2_fast.training.settings import configure

_RUNS = 40


class Passes(nn.Module):
    """A generator and ``count`` passes of the teacher, each of which starts from the tokens of the
    one before: they are kept, as every count is asked for the same noise."""

    def __init__(self, generator: Any, score: TeacherScore, count: int, before: Any) -> None:
        super().__init__()
        self.num_tokens, self._score, self.count = generator.num_tokens, score, count
        self._generator, self._before = (generator,), before
        self.kept: dict[tuple[float, ...], Tensor] = {}

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        teacher: Any = self._score.teacher
        key = (len(noise), *noise[0, 0].tolist())
        if self.count == 0:
            x: Tensor = self._generator[0](noise, labels)
            self.kept[key] = nearest_code(x, teacher.codebook)
            return x
        if key not in self._before.kept:
            self._before(noise, labels)
        tokens = self._score(self._before.kept[key], labels).flow(noise)
        self.kept[key] = tokens
        return teacher.codebook[tokens]


def held_out(name: str, data: Path | None, samples: int, settings: Any) -> tuple[Any, Tensor]:
    """Held-out images in parts, and their labels."""
    if name == "digits":
        digits = load_digits()
        return digits.test_images.split(250), digits.test_labels
    config = configure(DataConfig(), settings["data"])
    parallel = Parallel(ExecutionConfig(), torch.device("cpu"))
    images = ImageData.open(str(data), config, parallel)
    numbers = images.some_held_out(samples)
    return _Parts(images, numbers, 250), images.labels(numbers)


def teaching(name: str) -> Any:
    """Teacher, tokenizer, classifier, settings and generator, if there is one, of a bundled name or
    a run's folder."""
    if not Path(name).is_dir():
        return checkpoints.load_bundle(bundled_path(name))
    folder = Path(name)
    settings = json.loads((folder / "run.json").read_text())
    teacher = checkpoints.load(
        folder / "teacher.safetensors", tokenizer=folder / "tokenizer.safetensors"
    )
    classifier = checkpoints.load(folder / "classifier.safetensors")
    parts = {"teacher": teacher, "tokenizer": teacher.tokenizer, "classifier": classifier}
    return SimpleNamespace(**parts, settings=settings, generator=None)


@torch.no_grad()
def milliseconds(make: Callable[[], Any]) -> float:
    """CPU time of one image."""
    seconds = []
    for _ in range(_RUNS + 3):
        began = time.process_time()
        make()
        seconds.append(time.process_time() - began)
    return 1000 * min(seconds[3:])


def by_teacher(bundle: Any, sampling: dict[str, Any]) -> Tensor:
    tokens = draw_tokens(bundle.teacher, torch.tensor([3]), **sampling)
    images: Tensor = bundle.tokenizer.decode(bundle.tokenizer.embed(tokens))
    return images


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the bundled teacher, or a run's folder")
    parser.add_argument("runs", nargs="*", type=Path, help="folders of finished runs")
    parser.add_argument("--data", type=Path, help="the images it was trained on")
    parser.add_argument("--most", type=int, default=3, help="passes of the teacher")
    parser.add_argument("--temperatures", type=float, nargs="*", default=[1.0])
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0, help="of the evaluation")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bundle = teaching(options.name)
    settings = bundle.settings["settings"]
    score_of = settings["score"]
    generators: dict[str, Any] = {} if bundle.generator is None else {"dd2": bundle.generator}
    runs: dict[str, Any] = {}
    for run in options.runs:
        own = json.loads((run / "run.json").read_text())["settings"]
        if bundle.generator is None:
            score_of = own["score"]
        section = {"dd1": "regression", "dd2": "distill", "logits": "logits"}[own["method"]]
        found = [(run.name, "generator", own["method"], section)]
        if (run / "dd1.safetensors").exists():  # the baseline beside it
            found.append((f"{run.name}/dd1", "dd1", "dd1", "dd1"))
        for name, file, method, section in found:
            generator = checkpoints.load(run / f"{file}.safetensors")
            generator.tokenizer, generator.teacher = bundle.tokenizer, bundle.teacher
            runs[name] = {"method": method, "seed": own["seed"], **own[section]}
            if method != "logits":
                generators[name] = generator
                continue
            for temperature in options.temperatures:
                at = name if temperature == 1 else f"{name}, temperature {temperature:g}"
                generators[at] = generator.at_temperature(temperature)
    sampling = {k: score_of[k] for k in ("cfg", "top_k", "top_p")}
    score = TeacherScore(bundle.teacher, **sampling)
    ways: dict[str, Any] = {}
    for name, generator in generators.items():
        before = None
        for count in range(options.most + 1):
            before = ways[f"{name}+{count}"] = Passes(generator, score, count, before)
    images, labels = held_out(options.name, options.data, options.samples, settings)
    told = evaluate_images(
        bundle.tokenizer,
        images,
        labels,
        classifier=bundle.classifier,
        teacher=bundle.teacher,
        generators=ways,
        samples=options.samples,
        teacher_steps=(),
        seed=options.seed,
        sampling=sampling,
    )
    for name, generator in generators.items():
        for count in range(options.most + 1):
            sampler = Sampler(generator, jacobi=count, **(sampling if count else {}))
            told["rows"][f"{name}+{count}"]["ms"] = milliseconds(partial(sampler, [3]))
    told["rows"]["teacher"]["ms"] = milliseconds(partial(by_teacher, bundle, sampling))
    report = {"name": Path(options.name).name, "seed": options.seed, "runs": runs, **told}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out, (json.dumps(report, indent=1, sort_keys=True) + "\n").encode())
    for name, row in told["rows"].items():
        print(name, {k: round(v, 3) for k, v in row.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
