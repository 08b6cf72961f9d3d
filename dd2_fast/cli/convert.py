"""`dd2-fast convert`: a released checkpoint as safetensors that carry their configuration."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .inspect import millions, size_of
from .settings import add_config_option, check_new, load_model


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "convert",
        help="write a released checkpoint as safetensors",
        description="Load a released checkpoint and write it as safetensors with its kind and "
        "configuration inside, which opens at once and runs no pickled code. With its tokenizer "
        "inside too, the file needs nothing else.",
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="file, or folder with one")
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write, .safetensors")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="its tokenizer's checkpoint, to keep inside"
    )
    add_config_option(parser)
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Load SRC and write OUT."""
    from ..checkpoints.locks import locked

    out = arguments.out
    if out.suffix != ".safetensors":
        raise ValueError(f"OUT: expected a file name ending in .safetensors, got {out}")
    check_new(out, arguments.force)
    with locked(out):
        return _convert(arguments)


def _convert(arguments: argparse.Namespace) -> int:
    from .. import checkpoints

    out = arguments.out
    model = load_model(arguments.source, arguments.tokenizer, arguments.config)
    tokenizer = getattr(model, "tokenizer", None)
    checkpoints.save(out, model, {"source": arguments.source.name}, tokenizer=tokenizer)
    header = checkpoints.read_header(out)
    inside = f", with its {header['tokenizer']['kind']}" if "tokenizer" in header else ""
    print(f"wrote {out}: {header['kind']}, {millions(model.parameters())}{inside}, {size_of(out)}")
    return 0
