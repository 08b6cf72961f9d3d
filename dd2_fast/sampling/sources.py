"""From what a caller names as the model to the networks that sampling needs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.bundle import SETTINGS, Bundle
from ..reading import read_json

_ASSETS = Path(__file__).resolve().parent.parent / "assets"


@dataclass(frozen=True)
class Networks:
    """A one-step generator with its tokenizer, its teacher where the source has one, and the
    ``run.json`` of a bundle."""

    generator: Any
    tokenizer: Any
    teacher: Any | None
    run: dict[str, Any] = field(default_factory=dict)


def bundled_names() -> list[str]:
    """Return the names of the models that come with the package."""
    return sorted(path.parent.name for path in _ASSETS.glob("*/generator.safetensors"))


def bundled_path(name: str) -> Path:
    """Return the folder of a bundled model; ValueError with the list of names for others."""
    if name not in bundled_names():
        raise ValueError(f"model: expected a bundled name {_listed()} or a path, got {name!r}")
    return _ASSETS / name


def resolve_path(source: str | os.PathLike[str]) -> Path:
    """Return the path a bundled name or a path stands for.

    Raises ValueError for a plain word that is neither, FileNotFoundError for a missing path.
    """
    if isinstance(source, str) and source in bundled_names():
        return bundled_path(source)
    path = Path(source)
    if path.exists():
        return path
    if isinstance(source, str) and path.name == source and not path.suffix:
        return bundled_path(source)
    raise FileNotFoundError(
        f"model: no file or folder at {os.fspath(path)!r}; bundled names are {_listed()}"
    )


def run_of(path: Path) -> dict[str, Any]:
    """The ``run.json`` of a bundle or of another run's folder; empty where there is none."""
    record = path / SETTINGS
    return read_json(record, "a run's settings") if record.is_file() else {}


def load_networks(model: Any, device: torch.device | str | None = None) -> Networks:
    """Return the networks of a bundled name, a path, a loaded generator or a bundle.

    They are moved to device if one is given. Raises TypeError for a teacher, for a model without a
    generator's call or without a tokenizer, and what `resolve_path` and `checkpoints.load` raise.
    """
    run = model.settings if isinstance(model, Bundle) else {}
    if isinstance(model, str | os.PathLike):
        from .. import checkpoints

        path = resolve_path(model)
        with torch.inference_mode(False):  # the caller may train or convert them later
            model = checkpoints.load(path)
        run = run_of(path)
    generator = getattr(model, "generator", model)
    tokenizer = getattr(model, "tokenizer", None)
    if not callable(generator):
        raise TypeError(
            "model: expected a bundled name, a path, a generator or a bundle, "
            f"got {type(model).__name__}"
        )
    if hasattr(generator, "logits"):
        raise TypeError(
            f"model: expected a one-step generator, got a teacher, {type(generator).__name__}: its "
            "own steps are model.sample(labels), and dd2-fast train distils it"
        )
    if tokenizer is None:
        raise TypeError(
            f"model: expected a one-step generator with a tokenizer, got {type(model).__name__} "
            "without one; pass tokenizer= to dd2_fast.checkpoints.load"
        )
    networks = Networks(generator, tokenizer, getattr(model, "teacher", None), run)
    if device is not None:
        for network in (networks.generator, networks.tokenizer, networks.teacher):
            if network is not None:
                network.to(device)
    return networks


def _listed() -> str:
    return ", ".join(map(repr, bundled_names())) or "(none is installed)"
