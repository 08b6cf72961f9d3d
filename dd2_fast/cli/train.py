"""`dd2-fast train`: a recipe, or a loaded teacher's configuration, to a finished generator."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ..reading import read_text
from ..training.settings import configure, parse_config
from .settings import SEEDS, THREADS, add_config_option, apply_settings, field_types, integer
from .table import evaluation_table, quality_table

_RECIPES = {
    "digits": ("DigitsConfig", "the handwritten digits of scikit-learn, end to end"),
    "toy": (
        "ToyConfig",
        "a teacher given as a table, judged by exact total variation: {(0,0), (1,1)}, or with "
        "--set kind=random a random correlated table",
    ),
}
_CONFIGS = Path(__file__).resolve().parents[1] / "training" / "configs"
_SOURCES = ("teacher", "tokenizer", "data")
# Stages of the recipe for images that are asked for by their name.
_STAGES = ("tokenizer", "teacher")
_STAGES_OF = "images_var"
_CONFIGURED = {"distil": "DistilConfig", "images": "ImagesConfig"}
_CLOSE = 1e-4


def config_names() -> list[str]:
    """The configurations that come with the package."""
    return sorted(path.stem for path in _CONFIGS.glob("*.toml"))


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    recipes = "; ".join(f"{name}: {text}" for name, (_, text) in _RECIPES.items())
    parser = commands.add_parser(
        "train",
        help="distil a teacher into a one-step generator",
        description="Run a recipe and write its networks as safetensors with every setting as "
        "JSON. Running an interrupted command again resumes it; torchrun shares it out.",
        epilog=f"{recipes}; tokenizer and teacher: the first stages of images_var, or of another "
        "configuration of images that follows; "
        "configurations, of a loaded teacher or of images (images_var, images_llamagen, fashion, "
        "fashion_llamagen): "
        f"{', '.join(config_names())}, or a .toml file of your own",
    )
    parser.add_argument("recipe", help="a recipe, a configuration or a .toml file")
    parser.add_argument(
        "of",
        nargs="?",
        metavar="CONFIG",
        help=f"after tokenizer or teacher: the configuration of images (default {_STAGES_OF})",
    )
    add_configuration_options(parser)
    parser.add_argument("--out", type=Path, help="folder to write (default runs/RECIPE)")
    parser.add_argument("--backend", help="of every operator; torch is the plain reference trainer")
    parser.add_argument(
        "--check-parity",
        type=integer(1),
        metavar="N",
        help="train nothing: N steps of every stage, fused beside plain torch, and their "
        "differences",
    )
    parser.add_argument(
        "--threads", type=integer(*THREADS), help="threads of torch (default: all cores)"
    )
    parser.add_argument("--list", action="store_true", help="print the fields and their values")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run, shared=True)


def add_configuration_options(parser: argparse.ArgumentParser) -> None:
    """Add what changes a recipe's configuration, as :func:`configuration` reads it."""
    parser.add_argument("--teacher", help="checkpoint of the teacher")
    parser.add_argument("--tokenizer", help="checkpoint of its tokenizer")
    add_config_option(parser)
    parser.add_argument(
        "--data",
        help="images: a folder with one subfolder a class, an .npz (images, labels) or IDX files; "
        "for a loaded teacher: samples of dd2-fast make-data (default: drawn when needed)",
    )
    parser.add_argument(
        "--from",
        dest="start",
        metavar="RUN:stage1",
        help="take stage 1 of another run, made with the same settings of it",
    )
    parser.add_argument(
        "--seed", type=integer(0, SEEDS[1]), help="of the whole run (default: the recipe's)"
    )
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="override fields of the configuration, as in distill.steps=500; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the recipe and print where its networks are."""
    import torch

    from ..ops import default_backend
    from ..processes import place

    rank, count = place()
    module, config = configuration(arguments)
    if rank > 0 and (arguments.list or arguments.check_parity is not None):
        return 0
    if count > 1 and rank == 0 and arguments.recipe in _RECIPES:
        print(
            f"the recipe {arguments.recipe} is not shared: one process of {count} trains",
            flush=True,
        )
    if arguments.list:
        for name in field_types(config):
            print(f"{name}={_value(config, name)}")
        return 0
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.check_parity is not None:
        return _check_parity(module, config, arguments)
    out = arguments.out or Path("runs") / Path(arguments.recipe).stem
    try:
        with default_backend(arguments.backend):
            written = module.run(config, out, progress=not arguments.quiet)
    except KeyboardInterrupt as interrupt:
        reason = str(interrupt) or "interrupted; the same command continues"
        raise KeyboardInterrupt(f"{reason} from {out}") from None
    if rank > 0:
        return 0
    report = json.loads((written / "run.json").read_text(encoding="utf-8"))
    if "teacher" in report["metrics"]:
        print(quality_table(report["metrics"]))
    if "evaluation" in report:
        print(evaluation_table(report["evaluation"]))
    print(f"wrote {written}")
    return 0


def configuration(arguments: argparse.Namespace) -> tuple[ModuleType, Any]:
    """The recipe's module and its configuration with everything the command line changes."""
    name, last = arguments.recipe, ""
    if name in _STAGES:
        name, last = arguments.of or _STAGES_OF, name
        if name in _RECIPES:
            raise ValueError(f"CONFIG: expected a configuration of images, got {name}")
    elif arguments.of is not None:
        raise ValueError(
            f"CONFIG: expected one after {' or '.join(_STAGES)} only, got {arguments.of!r} after "
            f"{name}"
        )
    table = {} if name in _RECIPES else _read_toml(name)
    recipe = name if name in _RECIPES else table.pop("recipe", "distil")
    known = {**_CONFIGURED, **{key: kind for key, (kind, _) in _RECIPES.items()}}
    if recipe not in known:
        raise ValueError(f"{name}: expected a recipe of {', '.join(known)}, got {recipe!r}")
    if last and recipe != "images":
        raise ValueError(f"CONFIG: expected a configuration of images, got {name}")
    module = importlib.import_module(f"dd2_fast.training.recipes.{recipe}")
    given = {key: getattr(arguments, key) for key in _SOURCES if getattr(arguments, key)}
    if arguments.config:
        parse_config(arguments.config)  # a mistake in it before any work
        given["config"] = shlex.join(arguments.config)
    if recipe in _RECIPES:
        if arguments.start:
            raise ValueError(f"--from: the recipe {recipe} has no run to start from")
        if given:
            raise ValueError(f"--{next(iter(given))}: the recipe {recipe} makes its own")
    else:
        # All at once: whether settings fit each other may depend on what the options give.
        source = table.get("source", {})
        if isinstance(source, dict):
            table["source"] = {**source, **given}
        if last:
            table["last"] = last
    try:
        config = configure(getattr(module, known[recipe])(), table)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    config = apply_settings(config, arguments.set)
    # A start comes last: whether one fits may depend on what --set has changed.
    own = {} if arguments.seed is None else {"seed": arguments.seed}
    if arguments.start:
        own["start"] = arguments.start
    try:
        config = dataclasses.replace(config, **own)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return module, config


def _read_toml(name: str) -> dict[str, Any]:
    """The table in a file, or in a configuration of the package."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    path = _CONFIGS / f"{name}.toml" if name in config_names() else Path(name)
    if path.suffix != ".toml":
        known = ", ".join((*_RECIPES, *_STAGES, *config_names()))
        raise ValueError(f"recipe: expected one of {known} or a .toml file, got {name!r}")
    text = read_text(path, "a configuration")
    try:
        return tomllib.loads(text)
    except ValueError as error:  # not all of them are TOMLDecodeError
        raise ValueError(f"{path}: expected TOML, got {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: expected TOML, got one nested too deeply") from error


def _check_parity(module: ModuleType, config: Any, arguments: argparse.Namespace) -> int:
    """Print the differences; 1 where float32 parts differ by more than 1e-4."""
    if not hasattr(module, "check_parity"):
        raise ValueError(
            f"--check-parity: expected a configuration of a loaded teacher, got {arguments.recipe}"
        )
    print(f"{'stage':12} {'network':10} {'steps':>5} {'loss':>9} {'gradient':>9} {'weights':>9}")
    worst = 0.0
    for part in module.check_parity(config, arguments.check_parity, backend=arguments.backend):
        print(
            f"{part.stage:12} {part.network:10} {part.steps:5d} {part.loss:9.1e} "
            f"{part.gradient:9.1e} {part.weights:9.1e}",
            flush=True,
        )
        worst = max(worst, part.loss, part.weights)
    return int(worst > _CLOSE and config.execution.precision == "float32")


def _value(config: Any, name: str) -> str:
    """Return the value of a dotted field as `--set` takes it."""
    for part in name.split("."):
        config = getattr(config, part)
    return ",".join(map(str, config)) if isinstance(config, tuple) else str(config)
