"""One model a file: safetensors whose metadata holds the kind and the configuration as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from .files import write_atomic
from .registry import KINDS, class_of, kind_of

_KEY = "dd2_fast"
_NAMED = 4


def save(path: str | Path, model: nn.Module, metadata: Mapping[str, Any] | None = None) -> None:
    """Write ``model`` to ``path`` atomically.

    Args:
        path: the file, in a folder that exists.
        model: one of the registered kinds; its ``config`` must be JSON.
        metadata: anything JSON to keep beside it.

    Raises:
        TypeError: the model is of no registered kind. OSError: the file cannot be written.
    """
    header = {"kind": kind_of(model), "config": model.config, "metadata": dict(metadata or {})}
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    data = safetensors.torch.save(tensors, {_KEY: json.dumps(header, sort_keys=True)})
    write_atomic(Path(path), data)


def read_header(path: str | Path) -> dict[str, Any]:
    """Kind, config and metadata of one of our files.

    Raises:
        FileNotFoundError: no such file. ValueError: not a file of ours, or a damaged one.
    """
    return _read(Path(path))[0]


def load_model(path: str | Path) -> nn.Module:
    """The model in one of our files, in evaluation mode and with gradients off.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, not ours, or its tensors do not fit its configuration.
    """
    path = Path(path)
    header, tensors = _read(path)
    try:
        model = class_of(header["kind"])(**header["config"])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: the configuration does not build a {header['kind']}: {error}"
        ) from error
    _check_tensors(path, model.state_dict(), tensors)
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a safetensors file, found none")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path}: expected a whole safetensors file, got {path.stat().st_size} bytes that are "
            f"truncated or damaged ({error})"
        ) from error
    if text is None:
        raise ValueError(f"{path}: expected a dd2_fast checkpoint (metadata {_KEY!r}), got none")
    try:
        header = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON in metadata {_KEY!r}, got {error}") from error
    if header.get("kind") not in KINDS:
        raise ValueError(
            f"{path}: expected kind to be one of {', '.join(KINDS)}, got {header.get('kind')!r}"
        )
    return header, tensors


def _check_tensors(path: Path, expected: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    problems = []
    missing = [name for name in expected if name not in got]
    extra = [name for name in got if name not in expected]
    misshapen = [
        f"{name} (expected {list(expected[name].shape)}, got {list(got[name].shape)})"
        for name in expected
        if name in got and expected[name].shape != got[name].shape
    ]
    for what, names in (("missing", missing), ("unexpected", extra), ("misshapen", misshapen)):
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            problems.append(f"{len(names)} {what}: {', '.join(names[:_NAMED])}{more}")
    if problems:
        raise ValueError(
            f"{path}: expected {len(expected)} tensors as its configuration says, got "
            f"{len(got)}; {'; '.join(problems)}"
        )
