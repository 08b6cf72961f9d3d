"""Judges the networks of a folder on held-out images, and shows what they make."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import checkpoints
from ...checkpoints.files import write_atomic
from ...metrics.image_report import evaluate_images
from ...metrics.report import shuffle_within_class
from ...models.sampling import draw_tokens
from ...sampling import Sampler
from ..image_config import EvaluationConfig
from ..samples.image_batches import ImageData
from ..watch import image_grid

PICTURES = "pictures"
_GENERATORS = {"one_step": "generator", "stage1": "stage1"}
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
        FileNotFoundError: there is no tokenizer. ValueError: a file is damaged, or its images are
            of another size than the data's.
    """
    networks = {name: _load(folder, name, device) for name in ("tokenizer", "classifier")}
    tokenizer = networks["tokenizer"]
    if tokenizer is None:
        raise FileNotFoundError(f"{folder}: expected tokenizer.safetensors, found none")
    teacher = _load(folder, "teacher", device)
    if teacher is not None:
        teacher.tokenizer = tokenizer
    generators = {}
    for name, file in _GENERATORS.items():
        network = _load(folder, file, device)
        if network is not None and teacher is not None:
            network.tokenizer, network.teacher = tokenizer, teacher
            generators[name] = network
    numbers = data.held_out[: config.samples]
    parts = [
        data.load(numbers[i : i + config.batch])[0] for i in range(0, len(numbers), config.batch)
    ]
    labels = data.labels(numbers)
    told = evaluate_images(
        tokenizer,
        parts,
        labels,
        classifier=networks["classifier"],
        teacher=teacher,
        generators=generators,
        samples=config.samples,
        teacher_steps=config.teacher_steps,
        neighbours=config.neighbours,
        batch=config.batch,
        seed=seed,
        sampling=sampling,
    )
    for name, images in pictures(
        tokenizer, teacher, generators, data, config, dict(sampling), seed
    ):
        _write(folder / PICTURES / f"{name}.png", images, _columns(data.num_classes))
    return told


@torch.no_grad()
def pictures(
    tokenizer: Any,
    teacher: Any,
    generators: Mapping[str, Any],
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


def _columns(num_classes: int) -> int:
    return min(num_classes, _MOST_IN_A_ROW)


def _load(folder: Path, name: str, device: torch.device) -> Any:
    path = folder / f"{name}.safetensors"
    return checkpoints.load(path).to(device) if path.is_file() else None


def _write(path: Path, images: Tensor, columns: int) -> None:
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    file = io.BytesIO()
    Image.fromarray(image_grid(images.cpu(), columns, gap=2)).save(file, "PNG")
    write_atomic(path, file.getvalue())
