"""`dd2-fast fid`: the field's distances between two sets of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .settings import MOST, integer

_METRICS = ("fid", "sfid", "is", "kid", "pr")


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "fid",
        help="FID, sFID, IS, KID, precision and recall of two folders or archives",
        description="FID, sFID, inception score, KID, precision and recall in one pass over each "
        "set, by the formulas of ADM's evaluator and the Inception network of torch-fidelity, an "
        'extra: pip install "dd2-fast[fid]". Its weights are read from --weights, or where '
        "torch-fidelity keeps them; nothing is fetched without --download.",
    )
    parser.add_argument("images", type=Path, help="folder of images, or .npz with arr_0")
    parser.add_argument(
        "reference",
        type=Path,
        help="the same of the reference, or .npz with statistics: mu and sigma, for sFID mu_s and "
        "sigma_s; ADM's reference batches have all",
    )
    parser.add_argument(
        "--metrics",
        type=lambda text: text.split(","),
        metavar="NAMES",
        help=f"some of {','.join(_METRICS)} (default: all that the sets have what it takes for)",
    )
    parser.add_argument("--weights", type=Path, help="local file of the Inception network")
    parser.add_argument(
        "--download", action="store_true", help="fetch the network where it is not there"
    )
    parser.add_argument("--batch-size", type=integer(1), default=64, help="images a pass")
    parser.add_argument("--device", help="default: CUDA where there is one")
    parser.add_argument(
        "--max-bytes",
        type=integer(1, MOST),
        help="what an archive may hold once unpacked (default: 1 GiB, or 100 times its own size)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the metrics, one a line."""
    from ..metrics import fid

    found = fid(
        arguments.images,
        arguments.reference,
        metrics=arguments.metrics,
        weights=arguments.weights,
        download=arguments.download,
        device=arguments.device,
        batch_size=arguments.batch_size,
        max_bytes=arguments.max_bytes,
        progress=not arguments.quiet,
    )
    for name, value in found.items():
        print(f"{name}  {value:.4f}")
    return 0
