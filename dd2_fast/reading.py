"""Small files, read whole, and what is in a file, for a line of a message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_MOST_TEXT = 1 << 28  # bytes; the longest is a log of many million steps
_LONGEST = 2000


def check_regular(path: Path, what: str) -> None:
    """Raise FileNotFoundError or ValueError, which name ``path``, unless it is a regular file.

    A pipe would wait for its writer, and a device may never end.
    """
    if path.is_file():
        return
    if path.is_dir():
        raise ValueError(f"{path}: expected {what}, got a folder")
    if path.exists():
        raise ValueError(f"{path}: expected {what}, got a pipe or a device")
    raise FileNotFoundError(f"{path}: expected {what}, found none")


def read_text(path: Path, what: str) -> str:
    """The text of a file that should be ``what``.

    Raises:
        FileNotFoundError: no such file. OSError: it cannot be read.
        ValueError: not a regular file, not UTF-8 or of more than 256 MiB.
    """
    check_regular(path, what)
    if (size := path.stat().st_size) > _MOST_TEXT:
        raise ValueError(f"{path}: expected {what} of at most {_MOST_TEXT} bytes, got {size}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected {what} in UTF-8, got {error}") from error


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file that should be ``what``; errors as of :func:`read_text`."""
    return parse_json(read_text(path, what), str(path))


def parse_json(text: str, source: str) -> dict[str, Any]:
    """The JSON object in a text; ValueError, which names ``source``, for anything else."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{source}: expected JSON, got one nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{source}: expected JSON, got {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{source}: expected a JSON object, got {shown(value)}")
    return value


def printable(text: str) -> str:
    """``text`` in which no character moves a cursor, breaks a line or turns what follows around."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: Any) -> str:
    """A value from a file for one line of a message: its beginning, printable."""
    text = printable(value if isinstance(value, str) else repr(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
