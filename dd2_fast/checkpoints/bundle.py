"""A bundle: the folder that a recipe writes, with everything sampling and the demo need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..reading import read_json
from .files import check_writable, write_atomic
from .io import load_model, read_header, save
from .registry import kind_of

PARTS = ("tokenizer", "teacher", "generator", "stage1", "classifier")
OPTIONAL = ("stage1",)  # a logit student has none
SETTINGS = "run.json"
STORED = "stored"  # in the settings: the dtype of parts that are to be float32
_KINDS = {  # the ends of their names
    "tokenizer": ("_tokenizer",),
    "teacher": ("_teacher",),
    "generator": ("_generator", "_student"),
    "stage1": ("_generator", "_student"),
    "classifier": ("_classifier",),
}


@dataclass(frozen=True)
class Bundle:
    """What a bundle folder holds; ``settings`` is its ``run.json``, ``stage1`` the generator as its
    stage 1 left it, None where there was none."""

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
    needed = _file_names(OPTIONAL)
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: expected a bundle with {', '.join(needed)}; "
            f"missing {', '.join(missing)}{_other_files(folder)}"
        )
    settings = _settings(folder)
    parts = {name: _load_part(folder, name) for name in PARTS if _is_there(folder, name)}
    if STORED in settings:  # smaller than they were trained, to be computed with in float32
        for part in parts.values():
            part.float()
    bundle = Bundle(**{"stage1": None, **parts}, settings=settings)
    bundle.teacher.tokenizer = bundle.tokenizer
    bundle.generator.tokenizer = bundle.tokenizer
    bundle.generator.teacher = bundle.teacher
    return bundle


def shrink_bundle(folder: str | Path, out: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a bundle's parts into a new folder in a smaller ``dtype``; what loads them computes in
    float32 as before, with weights rounded once.

    Raises:
        As :func:`load_bundle`; OSError where ``out`` cannot be written.
    """
    folder, out = Path(folder), Path(out)
    bundle = load_bundle(folder)
    check_writable(out)
    for name in PARTS:
        if not _is_there(folder, name):
            continue
        header = read_header(folder / f"{name}.safetensors")
        save(out / f"{name}.safetensors", getattr(bundle, name).to(dtype), header["metadata"])
    settings = {**bundle.settings, STORED: str(dtype).removeprefix("torch.")}
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    write_atomic(out / SETTINGS, text.encode())


def load_generator(folder: Path) -> Any:
    """The generator of a bundle, or of a distillation's run, whose folder has no other part.

    Raises:
        As :func:`load_bundle`.
    """
    if is_bundle(folder) and _settings(folder).get("recipe") == "distil":
        return _load_part(folder, "generator")
    return load_bundle(folder).generator


def _load_part(folder: Path, name: str) -> Any:
    model = load_model(folder / f"{name}.safetensors")
    if not (kind := kind_of(model)).endswith(_KINDS[name]):
        raise ValueError(f"{folder / name}.safetensors: expected a {name}, got a {kind}")
    return model


def _settings(folder: Path) -> dict[str, Any]:
    return read_json(folder / SETTINGS, "a run's settings")


def _is_there(folder: Path, name: str) -> bool:
    return name not in OPTIONAL or (folder / f"{name}.safetensors").is_file()


def _file_names(but: tuple[str, ...] = ()) -> tuple[str, ...]:
    return (*(f"{name}.safetensors" for name in PARTS if name not in but), SETTINGS)


def _other_files(folder: Path) -> str:
    """A hint at the checkpoints in a folder that is no bundle."""
    if not folder.is_dir():
        return ""
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".pth", ".pt", ".safetensors"))
    names = [name for name in names if name not in _file_names()]
    return f"; or name one file in it: {', '.join(names[:4])}" if names else ""
