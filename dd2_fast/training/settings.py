"""Settings by name: of nested configurations, of TOML files and of command lines."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names and values of a configuration of nested dataclasses or of their dicts."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


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


def configure(config: Any, table: Mapping[str, Any], prefix: str = "") -> Any:
    """A copy of a configuration with the values of a table, as TOML has them.

    Raises:
        ValueError: a name that is no field, or a value that a field refuses. TypeError: a value of
            another type than the field's.
    """
    fields = {field.name for field in dataclasses.fields(config)}
    hints = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for name, value in table.items():
        if name not in fields:
            raise ValueError(
                f"{prefix}{name}: expected one of the fields {', '.join(sorted(fields))}"
            )
        current = getattr(config, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise TypeError(f"{prefix}{name}: expected a table, got {value!r}")
            changes[name] = configure(current, value, f"{prefix}{name}.")
        else:
            changes[name] = as_field(f"{prefix}{name}", value, hints[name])
    return _replaced(config, prefix, changes)


def _replaced(config: Any, section: str, changes: Mapping[str, Any]) -> Any:
    """``dataclasses.replace``; the ValueError of a refused value begins with the section it is in,
    a dotted name with its last dot."""
    try:
        return dataclasses.replace(config, **changes)
    except ValueError as error:
        raise ValueError(f"{section}{error}") from error


def as_field(name: str, value: Any, kind: Any, *, text: bool = False) -> Any:
    """``value`` as a field of type ``kind`` keeps it.

    Args:
        name: what an error begins with.
        value: as TOML has it; with ``text`` as a command line does, where a field that may be None
            takes "none", and a tuple values with commas, or nothing.

    Raises:
        TypeError: a value of another type; of a ``text`` it is a ValueError.
        ValueError: a number that is not finite, a value that is not one of a Literal.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None or (text and value.lower() == "none"):
            return None
        (kind,) = (one for one in inner if one is not types.NoneType)
        return as_field(name, value, kind, text=text)
    if origin is tuple:
        values = value
        if text:
            inside = value.strip("()")
            values = inside.split(",") if inside else []
        several = isinstance(values, list | tuple)
        kinds = inner[:1] * len(values) if several and inner[-1] is ... else inner
        if not several or len(values) != len(kinds):
            raise _wrong(name, f"{len(kinds)} values" + " separated by commas" * text, value, text)
        pairs = zip(values, kinds, strict=True)
        return tuple(as_field(name, v.strip() if text else v, k, text=text) for v, k in pairs)
    if origin is typing.Literal:
        if value not in inner:
            raise ValueError(f"{name}: expected one of {', '.join(map(str, inner))}, got {value!r}")
        return value
    found = _scalar(value, kind, text)
    if type(found) is not kind:
        raise _wrong(name, _KINDS[kind], value, text)
    if kind is float and not math.isfinite(found):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return found


def _scalar(value: Any, kind: type, text: bool) -> Any:
    """``value`` as a ``kind``, or unchanged where it is none."""
    if text and kind is bool:
        return _BOOLEANS.get(value.lower(), value)
    if text or (kind is float and type(value) is int):
        with contextlib.suppress(ValueError, OverflowError):
            return kind(value)
    return value


def _wrong(name: str, expected: str, value: Any, text: bool) -> Exception:
    return (ValueError if text else TypeError)(f"{name}: expected {expected}, got {value!r}")


def parse_config(assignments: Sequence[str], argument: str = "--config") -> dict[str, Any]:
    """Settings of ``checkpoints.load`` from texts ``key=value``: JSON, several values with commas,
    or plain text.

    Raises:
        ValueError: names ``argument`` and a text without "=", a key given twice, or one that is no
            setting.
    """
    config: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or not name.isidentifier():
            raise ValueError(f"{argument}: expected key=value, got {assignment!r}")
        if name in config:
            raise ValueError(f"{argument}: expected each key once, got {name!r} twice")
        if name in ("source", "tokenizer", "max_bytes", "verify"):
            raise ValueError(f"{argument}: expected a setting of the model, got {name!r}")
        config[name] = _setting(text)
    return config


def _setting(text: str) -> Any:
    for candidate in (text, f"[{text}]"):
        try:
            return json.loads(candidate)
        except (ValueError, RecursionError):
            continue
    return text
