"""`dd2-fast inspect`: what a checkpoint holds, whether known or not."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ..checkpoints.container import Contents

_NAMED = 6


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "inspect",
        help="what a checkpoint file holds",
        description="Print what a checkpoint file holds: container, nesting, kind, configuration, "
        "tensors. Works for files of unknown kinds too, and runs no pickled code.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help=".pth, .pt or .safetensors file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report; a file that is there and whole always gets one."""
    from ..checkpoints.container import UnsafeFileError, open_file
    from ..reading import printable, shown

    path = arguments.file
    if path.is_dir():
        raise ValueError(f"FILE: expected a checkpoint file, got the folder {path}")
    try:
        contents = open_file(path)
    except UnsafeFileError as error:
        rows = [
            ("container", "PyTorch"),
            ("kind", "not opened: its pickle names more than tensors and plain data"),
            ("would call", ", ".join(error.names)),
        ]
    else:
        rows = _describe(contents)
    for name, value in [("file", str(path)), ("size", size_of(path)), *rows]:
        print(f"{printable(name):<14}{shown(value)}")
    return 0


def size_of(path: Path) -> str:
    """Return the size of a file for people, in powers of 1000."""
    size = float(path.stat().st_size)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def millions(tensors: Iterable[Tensor]) -> str:
    """Return how many numbers the tensors hold, in millions."""
    return f"{sum(tensor.numel() for tensor in tensors) / 1e6:.3f} M parameters"


def _describe(contents: Contents) -> list[tuple[str, str]]:
    """Return the rows about a file that could be opened."""
    from ..checkpoints.container import state_dicts
    from ..checkpoints.io import is_own, own_header, own_parts
    from ..checkpoints.loader import configure, recognise

    rows = [("container", contents.container)]
    if is_own(contents):
        header = own_header(contents)
        rows += [("kind", f"{header['kind']}, written by dd2_fast")]
        rows += [("config", _json(header["config"])), ("metadata", _json(header["metadata"]))]
        weights, data, tokenizer = own_parts(contents)
        rows += [(f"its {name}", str(list(value.shape))) for name, value in data.items()]
        if "tokenizer" in header:
            rows.append(("tokenizer", f"{header['tokenizer']['kind']}, inside"))
            rows += [(f"  {name}", value) for name, value in _tensor_rows(tokenizer, tokenizer)[:2]]
        return rows + _tensor_rows(weights, weights)
    candidates = dict(state_dicts(contents.tree))
    if contents.metadata:
        rows.append(("metadata", _json(dict(contents.metadata))))
    if list(candidates) != [""]:
        rows.append(("keys", ", ".join(map(str, list(contents.tree)[:_NAMED])) or "none"))
    found = recognise(contents)
    if not found:
        rows.append(("kind", "unknown"))
        for nesting, tensors in candidates.items():
            rows += _nesting_row(nesting) + _tensor_rows(tensors, tensors)
        return rows
    for i, one in enumerate(found):
        rows += _nesting_row(one.nesting)
        rows.append(
            ("kind", one.format.kind if not i else f"{one.format.kind}; load takes the one above")
        )
        try:
            rows.append(("config", _json(configure(contents, one, {}))))
        except (TypeError, ValueError) as error:
            rows.append(("config", f"not known: {error}"))
        rows += _tensor_rows(candidates[one.nesting], one.tensors)
    return rows


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
