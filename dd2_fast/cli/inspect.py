"""`dd2-fast inspect`: what a checkpoint holds, whether known or not."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..training.settings import parse_config
from .settings import add_config_option, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from ..checkpoints.configuration import Found
    from ..checkpoints.container import Contents

_NAMED = 6
_ORIGINS = ("given", "read", "inferred", "default")


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "inspect",
        help="what a checkpoint file holds",
        description="Print what a checkpoint file holds: container, nesting, kind, configuration, "
        "where each part of that is from, tensors. Works for files of unknown kinds too, and runs "
        "no pickled code.",
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="file, or folder with model.safetensors"
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="OTHER", help="its tokenizer's file, which tells of it"
    )
    add_config_option(parser)
    parser.add_argument(
        "--verify",
        action="store_true",
        default=None,
        help="read all of it and compare it with the checksums inside (files up to 16 MiB: always)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report; a file that is there and whole always gets one."""
    from ..checkpoints.container import UnsafeFileError
    from ..checkpoints.folder import is_folder_of_weights
    from ..checkpoints.loader import open_source
    from ..reading import printable, shown

    path = arguments.file
    config = parse_config(arguments.config)
    if path.is_dir() and not is_folder_of_weights(path):
        raise ValueError(f"FILE: expected a checkpoint file, got the folder {path}")
    tokenizer = None
    if arguments.tokenizer is not None:
        tokenizer = load_tokenizer(arguments.tokenizer)
    try:
        contents = open_source(path, "FILE")
    except UnsafeFileError as error:
        rows = [
            ("container", "PyTorch"),
            ("kind", "not opened: its pickle names more than tensors and plain data"),
            ("would call", ", ".join(error.names)),
        ]
    else:
        rows = _describe(contents, config, tokenizer)
        if arguments.verify:
            count = f"{contents.compared} compared" if contents.compared else "none in the file"
            rows.insert(1, ("checksums", count))
    for name, value in [("file", str(path)), ("size", size_of(path)), *rows]:
        print(f"{printable(name):<14}{shown(value)}")
    return 0


def size_of(path: Path) -> str:
    """Return the size of a file or a folder's files for people, in powers of 1000."""
    files = path.iterdir() if path.is_dir() else [path]
    size = float(sum(file.stat().st_size for file in files if file.is_file()))
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def millions(tensors: Iterable[Tensor]) -> str:
    """Return how many numbers the tensors hold, in millions."""
    return f"{sum(tensor.numel() for tensor in tensors) / 1e6:.3f} M parameters"


def _describe(
    contents: Contents, config: Mapping[str, Any], tokenizer: Any
) -> list[tuple[str, str]]:
    """Return the rows about a file that could be opened."""
    from ..checkpoints.io import is_own, own_header, own_parts
    from ..checkpoints.loader import recognise, unsupported
    from ..checkpoints.nesting import state_dicts

    rows = [("container", contents.container)]
    if is_own(contents):
        if config:
            raise ValueError(f"--config: {contents.source} carries its configuration inside")
        header = own_header(contents)
        rows += [("kind", f"{header['kind']}, written by dd2_fast")]
        rows += [("config", _json(header["config"])), ("metadata", _json(header["metadata"]))]
        weights, data, tokenizer = own_parts(contents)
        rows += [(f"its {name}", str(list(value.shape))) for name, value in data.items()]
        if "tokenizer" in header:
            rows.append(("tokenizer", f"{header['tokenizer']['kind']}, inside"))
            rows += [(f"  {name}", value) for name, value in _tensor_rows(tokenizer, tokenizer)[:2]]
        return rows + _tensor_rows(weights, weights)
    candidates = state_dicts(contents.tree)
    if contents.metadata:
        rows.append(("metadata", _json(dict(contents.metadata))))
    if [one.nesting for one in candidates] != [""]:
        rows.append(("keys", ", ".join(map(str, list(contents.tree)[:_NAMED])) or "none"))
    found = recognise(contents)
    if not found:
        rows.append(
            ("kind", f"not supported: {what}" if (what := unsupported(contents)) else "unknown")
        )
        for other in candidates:
            rows += _nesting_row(other.nesting) + _tensor_rows(other.tensors, other.tensors)
        return rows
    for i, one in enumerate(found):
        rows += _nesting_row(one.nesting)
        rows.append(
            ("kind", one.format.kind if not i else f"{one.format.kind}; load takes the one above")
        )
        given = (config, tokenizer) if not i else ({}, None)
        rows += _config_rows(contents, one, *given)
        rows += _tensor_rows(one.state.tensors, one.tensors)
    return rows


def _config_rows(
    contents: Contents, found: Found, config: Mapping[str, Any], tokenizer: Any
) -> list[tuple[str, str]]:
    """Return the configuration, and what of it was given, read, inferred or a default."""
    from ..checkpoints.loader import arguments_of
    from ..checkpoints.registry import kind_of

    if tokenizer is not None:
        family, wanted = kind_of(tokenizer).removesuffix("_tokenizer"), found.format.kind
        if family not in wanted.split("_"):
            raise ValueError(f"--tokenizer: expected one for a {wanted}, got a {family}_tokenizer")
    try:
        made = arguments_of(contents, found, config, tokenizer)
    except (TypeError, ValueError) as error:
        if config or tokenizer is not None:
            raise ValueError(str(error)) from error
        return [("config", f"not known: {error}")]
    rows = [("config", _json({k: _short(v) for k, v in made.arguments.items()}))]
    names: dict[str, list[str]] = {}
    for name, origin in made.origins.items():
        names.setdefault(origin, []).append(name)
    for origin in sorted(names, key=lambda one: (_ORIGINS.index(one.split()[0]), one)):
        sort, _, place = origin.partition(" ")
        rows.append((f"  {sort}", ", ".join(names[origin]) + (f" {place}" if place else "")))
    return rows + [("  differs", note) for note in made.notes]


def _short(value: Any) -> Any:
    return list(value.shape) if hasattr(value, "shape") else value


def _nesting_row(nesting: str) -> list[tuple[str, str]]:
    return [("nesting", nesting)] if nesting else []


def _tensor_rows(
    everything: Mapping[str, Tensor], kept: Mapping[str, Tensor]
) -> list[tuple[str, str]]:
    """Return rows on a state dict, of which the model keeps a part."""
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in kept.values())
    rows = [
        ("tensors", f"{len(kept)}, {millions(kept.values())}"),
        ("dtypes", ", ".join(f"{dtype} {count}" for dtype, count in dtypes.most_common())),
    ]
    if len(everything) > len(kept):
        left_out = f"{len(everything) - len(kept)} that follow from the configuration"
        rows.append(("left out", left_out))
    first = [(f"  {list(tensor.shape)}", name) for name, tensor in list(kept.items())[:_NAMED]]
    rows += [("first names" if not i else "", f"{n}{s}") for i, (s, n) in enumerate(first)]
    return rows


def _json(value: Any) -> str:
    return json.dumps(value, default=str)
