"""A folder as the model hubs have them: the weights in one file or several, and config.json."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..reading import read_json, shown
from .checksums import OWN
from .container import Contents, open_file
from .io import is_own
from .nesting import CONFIG

_FILES = ("model.safetensors", "pytorch_model.bin", "consolidated.pth")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_NAMED = 4


def is_folder_of_weights(folder: Path) -> bool:
    """Whether ``folder`` holds weights under one of the hubs' names."""
    return any((folder / name).is_file() for name in (*_FILES, *_INDEXES))


def open_folder(folder: Path) -> Contents:
    """The contents of the first of the hubs' files in ``folder``, with its configuration.

    Raises:
        FileNotFoundError: no weights, or a part that the index names is missing.
        ValueError: a damaged file, a configuration that is no JSON object, an index that names
            files elsewhere.
    """
    config = (
        read_json(folder / CONFIG, "the model's configuration")
        if (folder / CONFIG).is_file()
        else {}
    )
    for name in _FILES:
        if (folder / name).is_file():
            whole = open_file(folder / name)
            tree = dict(whole.tree)
            break
    else:
        whole, tree = _open_parts(folder)
    if config and not is_own(whole):
        tree[CONFIG] = config
    return replace(whole, source=str(folder), container=f"folder, {whole.container}", tree=tree)


def _open_parts(folder: Path) -> tuple[Contents, dict[Any, Any]]:
    index = next((folder / name for name in _INDEXES if (folder / name).is_file()), None)
    if index is None:
        raise FileNotFoundError(f"{folder}: expected {', '.join(_FILES)}, found none")
    places = read_json(index, "the list of the files").get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index}: expected a weight_map of names to files, got {shown(places)}")
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{index}: expected names of files beside it, got {shown(repr(name))}")
    tree: dict[Any, Any] = {}
    parts = [open_file(folder / name) for name in sorted(set(places.values()))]
    for part in parts:
        tree |= part.tree
    missing = [name for name in places if name not in tree]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ValueError(
            f"{index}: expected the tensors {', '.join(map(shown, missing[:_NAMED]))}{more} in the "
            "files it names, found none"
        )
    if len({part.metadata.get(OWN) for part in parts}) > 1:
        raise ValueError(f"{index}: expected the files of one model, got those of several")
    counts = [part.compared for part in parts]
    compared = None if None in counts else min(count for count in counts if count is not None)
    return replace(parts[-1], compared=compared), tree
