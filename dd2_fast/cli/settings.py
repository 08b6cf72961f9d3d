"""What several commands take: `--set name=value`, and a model with `--tokenizer` and `--config`."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..training.config import parse_config, replaced

T = TypeVar("T")

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


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


def load_tokenizer(path: Path) -> Any:
    """Return the tokenizer in a file; what is none is a ValueError."""
    from ..checkpoints.loader import tokenizer_of

    try:
        return tokenizer_of(path)
    except TypeError as error:
        raise ValueError(str(error)) from error


def apply_settings(config: T, assignments: Sequence[str]) -> T:
    """Return a copy of a configuration dataclass with `name=value` assignments applied.

    Fields of nested dataclasses are named with dots, as in `distill.steps=500`. Raises ValueError
    for text without "=", a name that is not a field (with the nearest and the list of fields) or a
    value that is not of the field's type or that the configuration refuses.
    """
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"--set: expected name=value, got {assignment!r}")
        name = name.strip()
        known = field_types(config)
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            raise ValueError(
                f"--set: {hint}expected one of the fields {', '.join(known)}; got {name!r}"
            )
        value = _parse(name, text.strip(), known[name])
        config = _replace(config, name.split("."), value)
    return config


def field_types(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the types of all fields that are not dataclasses themselves, by dotted name."""
    hints = typing.get_type_hints(type(config))
    known: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            known.update(field_types(value, f"{prefix}{field.name}."))
        else:
            known[prefix + field.name] = hints[field.name]
    return known


def _replace(config: Any, path: Sequence[str], value: Any, section: str = "") -> Any:
    if len(path) > 1:
        inner = getattr(config, path[0])
        value = _replace(inner, path[1:], value, f"{section}{path[0]}.")
    return replaced(config, section, {path[0]: value})


def _parse(name: str, text: str, kind: Any) -> Any:
    """Return text as a value of a type: bool, int, float, str, an optional or a tuple of them."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments and text.lower() == "none":
            return None
        inner = [argument for argument in arguments if argument is not type(None)]
        return _parse(name, text, inner[0])
    if origin is tuple:
        parts = text.strip("()").split(",")
        inner = [arguments[0]] * len(parts) if arguments[-1] is ... else list(arguments)
        if len(parts) != len(inner):
            raise _wrong(name, f"{len(inner)} values separated by commas", text)
        return tuple(_parse(name, p.strip(), k) for p, k in zip(parts, inner, strict=True))
    if origin is typing.Literal:
        if text not in arguments:
            raise _wrong(name, f"one of {', '.join(map(str, arguments))}", text)
        return text
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise _wrong(name, "true or false", text)
        return _BOOLEANS[text.lower()]
    return _number(name, text, kind) if kind in (int, float) else text


def _number(name: str, text: str, kind: type) -> Any:
    try:
        value = kind(text)
    except ValueError:
        raise _wrong(name, "an integer" if kind is int else "a number", text) from None
    if not math.isfinite(value):
        raise _wrong(name, "a finite number", text)
    return value


def _wrong(name: str, expected: str, text: str) -> ValueError:
    return ValueError(f"--set {name}: expected {expected}, got {text!r}")
