"""What a released model is built with, and where each part of that is from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..models.released import Format
from .harmless import plain
from .nesting import StateDict
from .registry import KINDS

_TOKENIZER = "the tokenizer"


@dataclass(frozen=True)
class Found:
    """A state dict of a released format.

    Attributes:
        state: it and where it lies. format: its kind.
        tensors: those that the model takes.
        buffers: those that follow from the configuration, its own or, as averages have none, those
            of another state dict of its kind.
        records: what was saved beside any of its kind.
    """

    state: StateDict
    format: Format
    tensors: dict[str, Tensor]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    records: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)

    @property
    def nesting(self) -> str:
        """The names it lies under, with dots."""
        return self.state.nesting


@dataclass(frozen=True)
class Configured:
    """The constructor's arguments of a released model.

    Attributes:
        arguments: all of them.
        origins: of each argument: ``given`` by the caller, ``read`` from the file (with the place),
            ``inferred`` from the tensors' names and shapes, or ``default``.
        notes: what a record says otherwise than the tensors, which are taken.
    """

    arguments: dict[str, Any]
    origins: dict[str, str]
    notes: tuple[str, ...]


def configure(found: Found, config: Mapping[str, Any], tokenizer: Any = None) -> Configured:
    """The arguments by the tensors' shapes, the file's records, the tokenizer and the caller.

    Raises:
        TypeError, ValueError: names what is unknown or wrong, or the two that contradict each
            other.
    """
    one, settings = found.format, found.format.settings or {}
    told = _told(found, tokenizer)
    facts = _settings_of(told, settings)
    _check_given(config, facts)
    given = {name: value for name, value in config.items() if value is not None}
    merged = {**{name: value for name, (value, _) in facts.items()}, **given}
    merged = {**merged, **_scales_of(found, tokenizer, merged)}
    try:
        arguments = one.configure(found.tensors, merged)
    except ValueError as error:
        name = str(error).partition(":")[0]
        if name in facts and name not in given:
            raise ValueError(f"{error} (read from {facts[name][1]})") from error
        raise
    origins = dict.fromkeys(arguments, "inferred")
    for name in one.assumed(found.tensors, merged):
        origins[name] = "default"
    for name in merged:
        where = facts[name][1] if name in facts else _TOKENIZER
        origins[settings.get(name, name)] = "given" if name in given else f"read from {where}"
    return Configured(arguments, origins, _differences(arguments, told))


def _told(found: Found, tokenizer: Any) -> list[tuple[str, Any, str]]:
    """What the file and the tokenizer tell: (name, value, place)."""
    told: list[tuple[str, Mapping[str, Any]]] = [
        (where, found.format.told({name: plain(value) for name, value in record.items()}))
        for where, record in found.records.items()
    ]
    told.append(("its buffers", found.format.held({**found.buffers, **found.tensors})))
    config = _config_of(tokenizer, found.format)
    names = ("grid", "vocabulary", "dimension")
    told.append((_TOKENIZER, {n: config[n] for n in names if config.get(n) is not None}))
    return [(name, value, where) for where, facts in told for name, value in facts.items()]


def _settings_of(
    told: Sequence[tuple[str, Any, str]], settings: Mapping[str, str]
) -> dict[str, tuple[Any, str]]:
    """The value and the place of each setting that is told; ValueError where two places differ."""
    facts: dict[str, tuple[Any, str]] = {}
    for name, value, where in told:
        if name not in settings:
            continue
        before, place = facts.setdefault(name, (value, where))
        if before != value:
            raise ValueError(
                f"{name}: expected one value, got {before} in {place} and {value} in {where}"
            )
    return facts


def _check_given(config: Mapping[str, Any], facts: Mapping[str, tuple[Any, str]]) -> None:
    for name, value in config.items():
        if name in facts and value is not None and _plain(value) != facts[name][0]:
            expected, where = facts[name]
            hint = "" if where == _TOKENIZER else "; pass the inner state dict to decide otherwise"
            raise ValueError(f"{name}: expected {expected} as in {where}, got {value}{hint}")


def _differences(
    arguments: Mapping[str, Any], told: Sequence[tuple[str, Any, str]]
) -> tuple[str, ...]:
    """What records say otherwise than the tensors.

    Raises:
        ValueError: where that cannot be: a tokenizer of other codes, a table of classes whose last
            row is a class, as without dropout of the label.
    """
    notes = []
    for name, value, where in told:
        own = arguments.get(name)
        if own is None or own == value:
            continue
        if where == _TOKENIZER:
            raise ValueError(f"{name}: expected {own}, got {value} in {where}")
        if name == "num_classes" and own + 1 == value:
            raise ValueError(
                f"num_classes: expected a row for the null class beside the {value} of {where}, "
                "got a model without one, which was trained without dropping labels"
            )
        notes.append(f"{name} {value} in {where}, where the tensors are of {own}")
    return tuple(notes)


def _scales_of(found: Found, tokenizer: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The scales of a VAR tokenizer, where nothing else tells them and they fit the tensors.

    Its weights serve any scales, so others are no contradiction.
    """
    scales = _config_of(tokenizer, found.format).get("patch_nums")
    if scales is None or "patch_nums" in config:
        return {}
    try:
        found.format.configure(found.tensors, {**config, "patch_nums": scales})
    except ValueError:
        return {}
    return {"patch_nums": scales}


def _config_of(tokenizer: Any, one: Format) -> Mapping[str, Any]:
    """The configuration of a tokenizer of the format's family; empty for any other."""
    name = f"{type(tokenizer).__module__}:{type(tokenizer).__qualname__}"
    for kind, target in KINDS.items():
        if target == name and kind.removesuffix("_tokenizer") in one.kind.split("_"):
            return tokenizer.config
    return {}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
