"""What the loader needs to know of a released kind of file, and what the families share."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import Tensor

Tensors = Mapping[str, Tensor]
Config = Mapping[str, Any]


def _nothing(*_: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Format:
    """A released kind of file, told by the names of its tensors.

    Attributes:
        kind: the model's name in the registry.
        matches: whether a state dict is of this format, by names and shapes alone.
        configure: the constructor's arguments from the shapes and the caller's own ``config``;
            ValueError or TypeError names what is unknown or inconsistent.
        ignored: whether a name is a buffer that follows from the configuration.
        names: of tensors that every such file has, to say what a file that matches nothing lacks.
        settings: the names that ``config`` may have, with the argument that each one sets.
        told: what a configuration that training code saved says, by names of settings and
            arguments.
        held: the same of tensors, where their values or the buffers among them say something.
        assumed: the arguments that neither the shapes nor ``config`` tell.
    """

    kind: str
    matches: Callable[[Tensors], bool]
    configure: Callable[[Tensors, Config], dict[str, Any]]
    ignored: Callable[[str], bool]
    names: tuple[str, ...] = ()
    settings: Mapping[str, str] | None = None
    told: Callable[[Mapping[Any, Any]], dict[str, Any]] = _nothing
    held: Callable[[Tensors], dict[str, Any]] = _nothing
    assumed: Callable[[Tensors, Config], Collection[str]] = _nothing


@dataclass(frozen=True)
class Unsupported:
    """A kind of file that is known and cannot be loaded, with what to say of it."""

    matches: Callable[[Tensors], bool]
    what: str


def has(tensors: Tensors, names: Collection[str]) -> bool:
    """Whether all ``names`` are there."""
    return all(name in tensors for name in names)


def check_names(config: Config, known: Collection[str]) -> None:
    """Raise a TypeError for the names in ``config`` that are not known."""
    unknown = [name for name in config if name not in known]
    if unknown:
        raise TypeError(f"config: expected {', '.join(known)}, got {', '.join(unknown)}")


def integer(name: str, value: Any) -> int | None:
    """``value``, which must be an int, NumPy's too, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    return int(value)


def shape_of(tensors: Tensors, name: str, ndim: int) -> list[int]:
    """The shape of a tensor that must be there, of ``ndim`` dimensions."""
    if name not in tensors:
        raise ValueError(f"{name}: expected a tensor of {ndim} dimensions, found none")
    shape = list(tensors[name].shape)
    if len(shape) != ndim:
        raise ValueError(f"{name}: expected {ndim} dimensions, got shape {shape}")
    if 0 in shape:
        raise ValueError(f"{name}: expected values, got the empty shape {shape}")
    return shape


def count(tensors: Tensors, prefix: str) -> int:
    """How many different numbers follow ``prefix.``."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for match in map(pattern.match, tensors) if match})


def number(record: Mapping[Any, Any], *names: str) -> int | None:
    """The first of ``names`` that a saved configuration has as a positive integer."""
    for name in names:
        value = record.get(name)
        if isinstance(value, str) and value.isdecimal() and len(value) < 10:
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0:
            return int(value)
    return None


def known(**facts: Any) -> dict[str, Any]:
    """``facts`` without those that are None."""
    return {name: value for name, value in facts.items() if value is not None}
