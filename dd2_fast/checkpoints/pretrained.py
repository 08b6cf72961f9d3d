"""Models as folders of the hubs: `config.json`, `model.safetensors` whole or in parts, a card."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from .card import card
from .checksums import checked
from .files import check_writable, write_atomic
from .hub import fetched
from .hub import push as send
from .io import own_contents, write_own
from .loader import load, tokenizer_of
from .locks import locked
from .nesting import CONFIG

LARGEST = 5_000_000_000  # bytes of a file of weights
PICTURE = "samples.png"

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PART = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    kind: type[nn.Module] | None = None,
    **settings: Any,
) -> Any:
    """The model in a folder, or in a repository of the Hub, which is fetched.

    Args:
        source: a path, or `owner/name`. revision: a branch, tag or commit of a repository.
        kind: the class that it is to be; that of a tokenizer takes one that lies beside a model.
        settings: as of :func:`.load`: `tokenizer=`, and what neither shapes nor files tell.

    Raises:
        What :func:`.load` and :func:`.hub.fetched` raise; TypeError for a model of another kind.
    """
    path = fetched(source, revision)
    if kind is not None and hasattr(kind, "encode"):
        with torch.inference_mode(False), checked(settings.pop("verify", None)):
            model = tokenizer_of(path)
        if settings:
            raise TypeError(f"settings: expected none for a tokenizer, got {', '.join(settings)}")
    else:
        model = load(path, **settings)
    if kind is not None and not isinstance(model, kind):
        raise TypeError(
            f"{source}: expected a {kind.__name__}, got a {type(model).__name__}; "
            "dd2_fast.checkpoints.from_pretrained takes any"
        )
    return model


def save_pretrained(
    folder: str | os.PathLike[str],
    model: nn.Module,
    *,
    tokenizer: nn.Module | None = None,
    run: Mapping[str, Any] | None = None,
    licence: str | None = None,
    picture: bytes | None = None,
    max_shard_size: int = LARGEST,
) -> None:
    """Write a model, and a tokenizer with it, as a folder that `from_pretrained` and `load` read.

    What an earlier call wrote there is replaced; other files stay. A reader finds the old weights,
    the new ones, or, while several files are replaced, none.

    Args:
        run: of the card: a recipe's `run.json`, with its data, settings, metrics and versions.
        licence: of the card, an identifier of SPDX such as "apache-2.0".
        picture: of the card, a PNG, kept as `samples.png`.
        max_shard_size: bytes of a file of weights; what is larger is written in several, with the
            index that the Hub's libraries read. A tensor is never parted.

    Raises:
        TypeError: a model of no registered kind. ValueError: a wrong size, or a licence that is no
            identifier. OSError: the folder cannot be written. BlockingIOError: another process is
            writing there.
    """
    if isinstance(max_shard_size, bool) or not isinstance(max_shard_size, int):
        raise TypeError(f"max_shard_size: expected an int, got {type(max_shard_size).__name__}")
    if max_shard_size < 1:
        raise ValueError(f"max_shard_size: expected at least 1, got {max_shard_size}")
    header, tensors = own_contents(model, None, tokenizer)
    text = card(header, tensors, run or {}, licence, PICTURE if picture else None)
    config = {"architectures": [type(model).__name__], "dd2_fast": __version__, **header}
    folder = Path(folder)
    check_writable(folder)
    with locked(folder):
        _write_weights(folder, header, tensors, max_shard_size)
        write_atomic(folder / CONFIG, _json(config))
        if picture:
            write_atomic(folder / PICTURE, picture)
        write_atomic(folder / "README.md", text.encode())


def push(
    save: Callable[[Path], None],
    repo_id: str,
    *,
    revision: str | None,
    private: bool,
    message: str,
) -> str:
    """Send the folder that `save` writes to a repository of the Hub; see :func:`.hub.push`."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        return send(Path(folder), repo_id, revision=revision, private=private, message=message)


def _write_weights(
    folder: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor], largest: int
) -> None:
    parts = list(_parts(tensors, largest))
    if len(parts) == 1:
        write_own(folder / _WHOLE, header, tensors)  # readers take it before any index
        _remove(folder, _INDEX, *_parts_in(folder))
        return
    _remove(folder, _INDEX)  # first, so that none ever names files of two models
    names = [f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        write_own(folder / name, header, part)
    places = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    size = sum(map(_bytes, tensors.values()))
    index = {"metadata": {"total_size": size}, "weight_map": places}
    write_atomic(folder / _INDEX, _json(index))
    _remove(folder, _WHOLE, *(_parts_in(folder) - set(names)))


def _parts_in(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder) if _PART.fullmatch(name)}


def _remove(folder: Path, *names: str) -> None:
    for name in names:
        with suppress(FileNotFoundError):
            (folder / name).unlink()


def _parts(tensors: Mapping[str, Tensor], largest: int) -> Iterator[dict[str, Tensor]]:
    """The tensors in order, as many in each part as fit."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, value in tensors.items():
        if part and size + _bytes(value) > largest:
            yield part
            part, size = {}, 0
        part[name] = value
        size += _bytes(value)
    yield part


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
