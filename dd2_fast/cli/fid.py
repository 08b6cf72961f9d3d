"""`dd2-fast fid`: the Fréchet Inception distance of two sets of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .settings import MOST, integer


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "fid",
        help="Fréchet Inception distance of two folders or archives",
        description="The Fréchet Inception distance by torch-fidelity, an extra: pip install "
        '"dd2-fast[fid]". It downloads the Inception network at the first use.',
    )
    parser.add_argument("images", type=Path, help="folder of images, or .npz with arr_0")
    parser.add_argument("reference", type=Path, help="the same of the reference")
    parser.add_argument(
        "--max-bytes",
        type=integer(1, MOST),
        help="what an archive may hold once unpacked (default: 1 GiB, or 100 times its own size)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the metrics, one a line."""
    from ..metrics import fid

    found = fid(arguments.images, arguments.reference, max_bytes=arguments.max_bytes)
    for name, value in found.items():
        print(f"{name}  {value:.4f}")
    return 0
