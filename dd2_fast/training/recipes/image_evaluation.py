"""Judges the networks of a folder on held-out images, and shows what they make."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import checkpoints
from ...checkpoints.files import write_atomic
from ...condition import ClassCondition
from ...metrics.image_classifier import ImageClassifier
from ...metrics.image_report import evaluate_images
from ...metrics.report import shuffle_within_class
from ...models.family import Student, Teacher, Tokenizer
from ...models.sampling import draw_tokens
from ...sampling import Sampler
from ..image_config import EvaluationConfig, ImageClassifierConfig
from ..parallel import Parallel
from ..samples.image_batches import ImageData
from ..stages.image_classifier import ImageClassifierStage
from ..watch import image_grid

PICTURES = "pictures"
_GENERATORS = {"one_step": "generator", "dd1": "dd1", "stage1": "stage1"}
_POOL = 60  # teacher's draws a class, of which set prediction shuffles the tokens
_MOST_IN_A_ROW = 10


def evaluate_run(
    folder: Path,
    data: ImageData,
    config: EvaluationConfig,
    sampling: Mapping[str, Any],
    device: torch.device,
    seed: int = 0,
) -> dict[str, Any]:
    """What :func:`dd2_fast.metrics.image_report.evaluate_images` says of the networks in
    ``folder`` and the held-out images; ``folder/pictures`` gets a grid of each, all of one list of
    labels.

    Args:
        sampling: ``cfg``, ``top_k`` and ``top_p`` of the teacher.

    Raises:
        FileNotFoundError: there is no tokenizer. ValueError: a file is damaged.
    """
    found = load_judged(folder, device)
    return judge(found, folder / PICTURES, data, config, sampling, seed)


@dataclass
class Judged:
    """Networks to be judged; ``generators`` have tokenizer and teacher attached."""

    tokenizer: Tokenizer
    teacher: Teacher | None = None
    classifier: Any = None
    generators: dict[str, Any] = field(default_factory=dict)


def load_judged(folder: Path, device: torch.device, teacher: Teacher | None = None) -> Judged:
    """The networks of a run's folder, on ``device``.

    Args:
        teacher: with its tokenizer, for a run whose folder has none; None: the folder's.

    Raises:
        FileNotFoundError: there is no tokenizer. ValueError: a file is damaged.
    """
    networks = {name: _load(folder, file, device) for name, file in _GENERATORS.items()}
    networks = {name: network for name, network in networks.items() if network is not None}
    tokenizer = _load(folder, "tokenizer", device)
    if teacher is None:
        teacher = _load(folder, "teacher", device)
    elif tokenizer is None:
        tokenizer = teacher.tokenizer
    if tokenizer is None:
        inside = (getattr(network, "tokenizer", None) for network in networks.values())
        tokenizer = next((one for one in inside if one is not None), None)
    if tokenizer is None:
        raise FileNotFoundError(
            f"{folder}: expected tokenizer.safetensors, or a generator with its tokenizer, found "
            "none"
        )
    if teacher is not None:
        attached: Any = teacher.to(device)
        attached.tokenizer = tokenizer.to(device)
    for network in networks.values():
        network.tokenizer, network.teacher = tokenizer.to(device), teacher
    return Judged(tokenizer.to(device), teacher, _load(folder, "classifier", device), networks)


def train_classifier(
    data: ImageData, config: ImageClassifierConfig, parallel: Parallel, seed: int = 0
) -> ImageClassifier:
    """A classifier of the images to train on, for networks that come without one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = ImageClassifier(
            image_size=data.config.size,
            in_channels=data.config.channels,
            num_classes=data.num_classes,
            width=config.width,
            feature_dim=config.features,
        ).to(parallel.device)
    batches = data.batches(config.batch, seed, parallel)
    stage = ImageClassifierStage(classifier, batches, config, parallel)
    rng = torch.Generator().manual_seed(seed)
    for index in range(stage.steps):
        stage.step(index, rng)
    stage.finish()
    return classifier.eval()


def judge(
    found: Judged,
    folder: Path,
    data: ImageData,
    config: EvaluationConfig,
    sampling: Mapping[str, Any],
    seed: int = 0,
) -> dict[str, Any]:
    """The evaluation of networks; the pictures go into ``folder``.

    Raises:
        ValueError: the teacher's classes are fewer than the data's.
    """
    tokenizer, teacher, generators = found.tokenizer, found.teacher, found.generators
    condition = None if teacher is None else teacher.condition
    if isinstance(condition, ClassCondition) and condition.num_classes < data.num_classes:
        raise ValueError(
            f"data: expected at most the teacher's {condition.num_classes} classes, "
            f"got {data.num_classes}"
        )
    numbers = data.some_held_out(config.samples)
    told = evaluate_images(
        tokenizer,
        _Parts(data, numbers, config.batch),
        data.labels(numbers),
        classifier=found.classifier,
        teacher=teacher,
        generators=generators if teacher is not None else {},
        samples=config.samples,
        teacher_steps=config.teacher_steps,
        jacobi=config.jacobi,
        neighbours=config.neighbours,
        batch=config.batch,
        seed=seed,
        sampling=sampling,
    )
    for name, images in pictures(
        tokenizer, teacher, generators, data, config, dict(sampling), seed
    ):
        _write(folder / f"{name}.png", images, _columns(data.num_classes))
    return told


class _Parts:
    """Images by their numbers, some at a time; may be gone through again."""

    def __init__(self, data: ImageData, numbers: np.ndarray, size: int) -> None:
        self.data, self.numbers, self.size = data, numbers, size

    def __iter__(self) -> Iterator[Tensor]:
        for first in range(0, len(self.numbers), self.size):
            yield self.data.load(self.numbers[first : first + self.size])[0]


@torch.no_grad()
def pictures(
    tokenizer: Tokenizer,
    teacher: Teacher | None,
    generators: Mapping[str, Student],
    data: ImageData,
    config: EvaluationConfig,
    sampling: dict[str, Any],
    seed: int,
) -> Iterator[tuple[str, Tensor]]:
    """Images ``[grid, c, S, S]`` by name, of one list of labels: real ones, the same through the
    tokenizer, the teacher's, set prediction's and each generator's."""
    device = tokenizer.codebook.device
    columns = _columns(data.num_classes)
    wanted = torch.arange(config.grid) % columns % data.num_classes
    held = data.labels(data.held_out)
    numbers = []
    for i, label in enumerate(wanted.tolist()):
        found = (held == label).nonzero()[:, 0]
        if len(found):
            numbers.append(int(data.held_out[int(found[i // columns % len(found)])]))
    real, _ = data.load(numbers)
    yield "real", real
    yield "reconstruction", tokenizer.decode(tokenizer.embed(tokenizer.encode(real.to(device))))
    if teacher is None:
        return
    labels = wanted.to(device)
    tokens = draw_tokens(teacher, labels, seed=seed, **sampling)
    yield "teacher", tokenizer.decode(tokenizer.embed(tokens))
    pool = torch.arange(columns, device=device).repeat(_POOL)
    drawn = draw_tokens(teacher, pool, seed=seed, **sampling)
    shuffled = shuffle_within_class(drawn.cpu(), pool.cpu(), seed=seed).to(device)
    shuffled = shuffled[: len(labels)]
    yield "set_prediction", tokenizer.decode(tokenizer.embed(shuffled))
    for name, generator in generators.items():
        yield name, Sampler(generator)(wanted, seed=seed)
        if name != "one_step":
            continue
        for steps in config.teacher_steps:
            if 1 < steps <= len(teacher.steps) + 1:
                sampler = Sampler(generator, teacher_steps=steps, **sampling)
                yield f"{name}_{steps}", sampler(wanted, seed=seed)
        for passes in config.jacobi:
            sampler = Sampler(generator, jacobi=passes, **sampling)
            yield f"{name}_jacobi_{passes}", sampler(wanted, seed=seed)


def _columns(num_classes: int) -> int:
    return min(num_classes, _MOST_IN_A_ROW)


def _load(folder: Path, name: str, device: torch.device) -> Any:
    """A part in float32, as bundles are computed with whatever they are stored in."""
    path = folder / f"{name}.safetensors"
    return checkpoints.load(path).to(device, torch.float32) if path.is_file() else None


def _write(path: Path, images: Tensor, columns: int) -> None:
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    file = io.BytesIO()
    Image.fromarray(image_grid(images.cpu(), columns, gap=2)).save(file, "PNG")
    write_atomic(path, file.getvalue())
