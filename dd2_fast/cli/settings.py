"""What several commands take: `--set name=value`, and a model with `--tokenizer` and `--config`."""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..reading import shown
from ..training.settings import as_field, configure, field_types, parse_config

T = TypeVar("T")
SEEDS = (-(1 << 63), (1 << 63) - 1)
THREADS = (1, 1 << 12)
MOST = (1 << 63) - 1  # of what counts images
_WIDEST = 1 << 31  # of what makes arrays


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, what a file does not tell of its model."""
    parser.add_argument(
        "--config",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="what the file does not tell, as in patch_nums=1,2,3 or n_head=32, grid=24, split=5",
    )


def add_model_options(parser: argparse.ArgumentParser, name: str, *, steps: bool = True) -> None:
    """Add ``name`` (``--model``, or ``model`` for an argument that must be given), `--tokenizer`,
    `--config` and `--steps`: a one-step generator, as :func:`one_step_model` loads it."""
    told = "bundled name, folder of a bundle or of a run of train, or checkpoint of a generator"
    if name.startswith("-"):
        parser.add_argument(name, default="digits", help=f"{told} (default digits)")
    else:
        parser.add_argument(name, metavar=name.upper(), help=told)
    parser.add_argument("--tokenizer", type=Path, help="its tokenizer's checkpoint, for a file")
    add_config_option(parser)
    if not steps:
        return
    parser.add_argument(
        "--steps",
        type=integer(1, 2),
        default=1,
        help="passes of the generator; 2 for DD1's second step",
    )


def integer(low: int, high: int = _WIDEST) -> Callable[[str], int]:
    """The type of an argument that is an integer in ``low..high``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"expected an integer in {low}..{high}, got {shown(text)}"
            )
        return value

    return parse


def class_list(text: str) -> list[int]:
    """The type of an argument that is classes, separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected integers separated by commas, got {shown(text)}"
        ) from None


def load_model(path: Path, tokenizer: Path | None, assignments: Sequence[str]) -> Any:
    """Return the model of a file with what `--tokenizer` and `--config` say.

    A setting of the wrong name or type, or a tokenizer for what takes none, is a ValueError too.
    """
    from .. import checkpoints

    config = parse_config(assignments)
    try:
        return checkpoints.load(path, tokenizer=tokenizer, **config)
    except TypeError as error:
        raise ValueError(str(error)) from error


def one_step_model(model: str, tokenizer: Path | None, assignments: Sequence[str]) -> Any:
    """The generator that a bundled name or a path stands for, with its tokenizer; ValueError where
    none is given or inside."""
    from ..sampling import resolve_path

    path = resolve_path(model)
    loaded = load_model(path, tokenizer, assignments)
    if getattr(loaded, "tokenizer", loaded) is None and not hasattr(loaded, "logits"):
        raise ValueError(
            f"--tokenizer: expected the checkpoint of its tokenizer for the one-step generator in "
            f"{path}, which holds none, got nothing"
        )
    return loaded


def device_here(given: Any = None) -> Any:
    """The device that is given, else CUDA where there is one; RuntimeError for one that torch
    cannot use here."""
    import torch

    from ..sampling.arguments import check_device

    device = given or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    return device


def image_size(model: Any) -> int:
    """Pixels along a side of the images of a sampler or a teacher."""
    tokenizer = model.tokenizer
    # A tokenizer of LlamaGen may take any raster.
    return int(tokenizer.image_size or tokenizer.factor * math.isqrt(model.num_tokens))


def check_new(out: Path, force: bool) -> None:
    """Raise unless OUT can be written and, without `--force`, is not there yet."""
    from ..checkpoints.files import check_file

    if out.is_dir() or (out.exists() and not force):
        hint = "a folder is there" if out.is_dir() else "it exists; --force replaces it"
        raise ValueError(f"OUT: expected a new file, got {out}: {hint}")
    check_file(out)


def load_tokenizer(path: Path) -> Any:
    """Return the tokenizer in a file; what is none is a ValueError."""
    from ..checkpoints.loader import tokenizer_of

    try:
        return tokenizer_of(path)
    except TypeError as error:
        raise ValueError(str(error)) from error


def apply_settings(config: T, assignments: Sequence[str]) -> T:
    """Return a copy of a configuration dataclass with all `name=value` assignments applied.

    Fields of nested dataclasses are named with dots, as in `distill.steps=500`. Raises ValueError
    for text without "=", a name that is not a field (with the nearest and the list of fields) or a
    value that is not of the field's type or that the configuration refuses.
    """
    known = field_types(config)
    table: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"--set: expected name=value, got {assignment!r}")
        name = name.strip()
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            raise ValueError(
                f"--set: {hint}expected one of the fields {', '.join(known)}; got {name!r}"
            )
        *sections, field = name.split(".")
        section = table
        for part in sections:
            section = section.setdefault(part, {})
        section[field] = as_field(f"--set {name}", text.strip(), known[name], text=True)
    return configure(config, table)
