"""One model a file: safetensors whose metadata holds the kind and the configuration as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from .build import build_model
from .container import Contents, open_file
from .files import replacing
from .registry import KINDS, kind_of

_KEY = "dd2_fast"


def save(path: str | Path, model: nn.Module, metadata: Mapping[str, Any] | None = None) -> None:
    """Write ``model`` to ``path`` atomically.

    Args:
        path: the file, in a folder that exists.
        model: one of the registered kinds; its ``config`` must be JSON.
        metadata: anything JSON to keep beside it.

    Raises:
        TypeError: the model is of no registered kind. OSError: the file cannot be written.
    """
    path = Path(path)
    header = {"kind": kind_of(model), "config": model.config, "metadata": dict(metadata or {})}
    text = json.dumps(header, sort_keys=True)
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    with replacing(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, {_KEY: text})
        except safetensors.SafetensorError as error:
            raise OSError(f"{path}: cannot write: {error}") from error


def read_header(path: str | Path) -> dict[str, Any]:
    """Kind, config and metadata of one of our files.

    Raises:
        FileNotFoundError: no such file. ValueError: not a file of ours, or a damaged one.
    """
    return own_header(open_file(Path(path)))


def load_model(path: str | Path) -> nn.Module:
    """The model in one of our files, in evaluation mode and with gradients off.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, not ours, or its tensors do not fit its configuration.
    """
    return build_own(open_file(Path(path)))


def is_own(contents: Contents) -> bool:
    """Whether ``contents`` are those of a file that :func:`save` wrote."""
    return _KEY in contents.metadata


def own_header(contents: Contents) -> dict[str, Any]:
    """Kind, config and metadata of one of our files; ValueError for any other."""
    source, text = contents.source, contents.metadata.get(_KEY)
    if text is None:
        raise ValueError(f"{source}: expected a dd2_fast checkpoint (metadata {_KEY!r}), got none")
    try:
        header = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{source}: expected JSON in metadata {_KEY!r}, got {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("config"), dict):
        raise ValueError(f"{source}: expected kind and config in metadata {_KEY!r}, got {text}")
    if header.get("kind") not in KINDS:
        raise ValueError(
            f"{source}: expected kind to be one of {', '.join(KINDS)}, got {header.get('kind')!r}"
        )
    return header


def build_own(contents: Contents, **extra: Any) -> nn.Module:
    """The model in one of our files; ValueError as for :func:`load_model`.

    ``extra`` are arguments of the constructor that are data, which no configuration holds.
    """
    header = own_header(contents)
    config = {**header["config"], **extra}
    return build_model(contents.source, header["kind"], config, contents.tree)
