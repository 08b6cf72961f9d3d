"""`dd2-fast train`: a recipe from its first stage to a finished bundle."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

from .settings import apply_settings, field_types
from .table import quality_table

_RECIPES = {
    "digits": ("DigitsConfig", "the handwritten digits of scikit-learn, end to end"),
    "toy": (
        "ToyConfig",
        "a teacher given as a table, judged by exact total variation: {(0,0), (1,1)}, or with "
        "--set kind=random a random correlated table",
    ),
}


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "train",
        help="distil a teacher into a one-step generator",
        description="Run a recipe: train or build the teacher, distil it, and write a bundle of "
        "safetensors with every setting as JSON. Running an interrupted command again resumes it.",
        epilog="; ".join(f"{name}: {text}" for name, (_, text) in _RECIPES.items()),
    )
    parser.add_argument("recipe", choices=_RECIPES, help="what to train")
    parser.add_argument("--out", type=Path, help="folder to write (default runs/RECIPE)")
    parser.add_argument("--seed", type=int, help="of the whole run (default: the recipe's)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override a field of the configuration, as in distill.steps=500; may be repeated",
    )
    parser.add_argument("--threads", type=int, help="threads of torch (default: all cores)")
    parser.add_argument("--list", action="store_true", help="print the fields and their values")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the recipe and print where the bundle is."""
    import torch

    module = importlib.import_module(f"dd2_fast.training.recipes.{arguments.recipe}")
    config = getattr(module, _RECIPES[arguments.recipe][0])()
    config = apply_settings(config, arguments.set)
    if arguments.seed is not None:
        config = dataclasses.replace(config, seed=arguments.seed)
    if arguments.list:
        for name in field_types(config):
            print(f"{name}={_value(config, name)}")
        return 0
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"--threads: expected at least 1, got {arguments.threads}")
        torch.set_num_threads(arguments.threads)
    out = arguments.out or Path("runs") / arguments.recipe
    try:
        written = module.run(config, out, progress=not arguments.quiet)
    except KeyboardInterrupt as interrupt:
        reason = str(interrupt) or "interrupted; the same command continues"
        raise KeyboardInterrupt(f"{reason} from {out}") from None
    metrics = json.loads((written / "run.json").read_text(encoding="utf-8"))["metrics"]
    if "teacher" in metrics:
        print(quality_table(metrics))
    print(f"wrote {written}")
    return 0


def _value(config: Any, name: str) -> str:
    """Return the value of a dotted field as `--set` takes it."""
    for part in name.split("."):
        config = getattr(config, part)
    return ",".join(map(str, config)) if isinstance(config, tuple) else str(config)
