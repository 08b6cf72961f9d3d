"""One model a file: safetensors whose metadata holds the kind and the configuration as JSON.

Beside the weights a file may hold what else the model needs: tensors that its constructor takes, as
``data.NAME``, and its tokenizer, as ``tokenizer.NAME`` with a kind and configuration of its own. A
second entry of the metadata has checksums, which versions before it lack.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from ..reading import parse_json, shown
from .build import build_model, overlapping
from .checksums import OWN, checksums
from .container import Contents, open_file
from .files import remove_leftovers, replacing
from .registry import KINDS, kind_of

_DATA = "data."
_TOKENIZER = "tokenizer."


def save(
    path: str | Path,
    model: nn.Module,
    metadata: Mapping[str, Any] | None = None,
    *,
    tokenizer: nn.Module | None = None,
) -> None:
    """Write ``model`` to ``path`` atomically; a codebook of its own goes with it.

    Args:
        path: the file, in a folder that exists.
        model: one of the registered kinds; its ``config`` must be JSON.
        metadata: anything JSON to keep beside it.
        tokenizer: one to keep in the file and attach when it is loaded.

    Raises:
        TypeError: a model of no registered kind. OSError: the file cannot be written.
    """
    path = Path(path)
    header, tensors = own_contents(model, metadata, tokenizer)
    remove_leftovers(path)
    write_own(path, header, tensors)


def own_contents(
    model: nn.Module, metadata: Mapping[str, Any] | None, tokenizer: nn.Module | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file of ours holds: its header, and tensors on the CPU that share no memory."""
    header: dict[str, Any] = {
        "kind": kind_of(model),
        "config": model.config,
        "metadata": dict(metadata or {}),
    }
    tensors = dict(model.state_dict())
    if data := getattr(model, "data", {}):
        header["data"] = list(data)
        tensors |= {_DATA + name: value for name, value in data.items()}
    if tokenizer is not None:
        header["tokenizer"] = {"kind": kind_of(tokenizer), "config": tokenizer.config}
        tensors |= {_TOKENIZER + name: value for name, value in tokenizer.state_dict().items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    tensors |= {name: tensors[name].clone() for name in overlapping(tensors)}  # tied weights
    return header, tensors


def write_own(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file of ours atomically, or one of the several that hold a model's tensors."""
    text = json.dumps(header, sort_keys=True)
    with replacing(path) as temporary:
        try:
            safetensors.torch.save_file(dict(tensors), temporary, checksums(tensors, text))
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
    return OWN in contents.metadata


def own_header(contents: Contents) -> dict[str, Any]:
    """Kind, config and metadata of one of our files; ValueError for any other.

    ``data`` names the tensors beside the weights, ``tokenizer`` has the kind and config of one.
    """
    source, text = contents.source, contents.metadata.get(OWN)
    if text is None:
        raise ValueError(f"{source}: expected a dd2_fast checkpoint (metadata {OWN!r}), got none")
    header = parse_json(text, f"{source}: metadata {OWN!r}")
    header = {"metadata": {}, **{key: part for key, part in header.items() if part is not None}}
    parts = [header, header["tokenizer"]] if "tokenizer" in header else [header]
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("config"), dict):
            raise ValueError(
                f"{source}: expected kind and config in metadata {OWN!r}, got {shown(part)}"
            )
        if not isinstance(part.get("kind"), str) or part["kind"] not in KINDS:
            raise ValueError(
                f"{source}: expected kind to be one of {', '.join(KINDS)}, "
                f"got {shown(repr(part.get('kind')))}"
            )
    data = header.get("data", [])
    if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
        raise ValueError(f"{source}: expected data to be a list of names, got {shown(data)}")
    if not isinstance(header["metadata"], dict):
        raise ValueError(
            f"{source}: expected metadata to be an object, got {shown(header['metadata'])}"
        )
    return header


def own_parts(contents: Contents) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The tensors in one of our files: the model's weights, its data, its tokenizer's weights."""
    header, weights = own_header(contents), dict(contents.tree)
    data, tokenizer = {}, {}
    for name in header.get("data", ()):
        if _DATA + name not in weights:
            raise ValueError(
                f"{contents.source}: expected a tensor {shown(_DATA + name)}, found none"
            )
        data[name] = weights.pop(_DATA + name)
    if "tokenizer" in header:
        names = [name for name in weights if name.startswith(_TOKENIZER)]
        tokenizer = {name.removeprefix(_TOKENIZER): weights.pop(name) for name in names}
    return weights, data, tokenizer


def build_own(contents: Contents, **extra: Any) -> nn.Module:
    """The model in one of our files; ValueError as for :func:`load_model`.

    ``extra`` are arguments of the constructor that are data and not in the file.
    """
    header, (weights, data, _) = own_header(contents), own_parts(contents)
    config = {**header["config"], **data, **extra}
    model = build_model(contents.source, header["kind"], config, weights)
    if "tokenizer" in header:
        model.tokenizer = build_own_tokenizer(contents)
    return model


def build_own_tokenizer(contents: Contents) -> nn.Module:
    """The tokenizer that one of our files keeps beside a model."""
    part, source = own_header(contents)["tokenizer"], f"{contents.source} (tokenizer)"
    return build_model(source, part["kind"], part["config"], own_parts(contents)[2])
