"""A bundle: the folder that a recipe writes, with everything sampling and the demo need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..models import DD2Generator
from .io import load_model

PARTS = ("tokenizer", "teacher", "generator", "stage1", "classifier")
SETTINGS = "run.json"


@dataclass(frozen=True)
class Bundle:
    """What a bundle folder holds; ``settings`` is its ``run.json``."""

    tokenizer: Any
    teacher: Any
    generator: Any
    stage1: Any
    classifier: Any
    settings: dict[str, Any]


def is_bundle(folder: Path) -> bool:
    """Whether ``folder`` holds a finished bundle."""
    return (folder / SETTINGS).is_file()


def load_bundle(folder: str | Path) -> Bundle:
    """Every part of a bundle folder, the generator with its tokenizer and teacher attached.

    Raises:
        FileNotFoundError: the folder or a part is missing. ValueError: a part is damaged.
    """
    folder = Path(folder)
    missing = [name for name in _file_names() if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: expected a bundle with {', '.join(_file_names())}; "
            f"missing {', '.join(missing)}"
        )
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / SETTINGS}: expected JSON, got {error}") from error
    parts = {name: load_model(folder / f"{name}.safetensors") for name in PARTS}
    bundle = Bundle(**parts, settings=settings)
    bundle.generator.tokenizer = bundle.tokenizer
    bundle.generator.teacher = bundle.teacher
    return bundle


def load(source: str | Path, *, tokenizer: Any = None, **config: Any) -> nn.Module:
    """A model from one of our files, or the generator of a bundle folder.

    Args:
        source: a ``.safetensors`` file that :func:`save` wrote, or a bundle folder.
        tokenizer: what to attach to a generator as ``.tokenizer``, in place of the bundle's own.
        config: what shapes of released files cannot tell; our own files need none.

    Raises:
        FileNotFoundError: nothing there. TypeError, ValueError: not something this reads.
    """
    if not isinstance(source, str | Path):
        raise TypeError(f"source: expected a path, got {type(source).__name__}")
    if config:
        raise TypeError(
            f"config: our own checkpoints carry their configuration, got {', '.join(config)}"
        )
    path = Path(source)
    model = load_bundle(path).generator if path.is_dir() else load_model(path)
    if tokenizer is not None:
        if not isinstance(model, DD2Generator):
            raise TypeError(
                f"tokenizer: expected a generator to attach it to, {path} holds a "
                f"{type(model).__name__}"
            )
        model.tokenizer = tokenizer
    return model


def _file_names() -> tuple[str, ...]:
    return (*(f"{name}.safetensors" for name in PARTS), SETTINGS)
