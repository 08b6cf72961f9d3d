"""How much memory the contents of a file may take, which a file cannot raise but a caller can."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

ENVIRONMENT = "DD2_FAST_MAX_BYTES"

_LEAST = 1 << 30
_TIMES = 8
_RAISED: ContextVar[int | None] = ContextVar("max_bytes", default=None)


@contextmanager
def memory_limit(max_bytes: int | None) -> Iterator[None]:
    """Let files that this thread opens meanwhile take ``max_bytes``; None changes nothing.

    Raises:
        TypeError, ValueError: not a positive integer.
    """
    if max_bytes is None:
        yield
        return
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int):
        raise TypeError(f"max_bytes: expected an int, got {type(max_bytes).__name__}")
    if max_bytes < 1:
        raise ValueError(f"max_bytes: expected at least 1, got {max_bytes}")
    token = _RAISED.set(max_bytes)
    try:
        yield
    finally:
        _RAISED.reset(token)


class TooLargeError(ValueError):
    """A file that declares more than it may take."""


class Budget:
    """The memory that the contents of one file may take: a gigabyte, or eight times its size.

    ``max_bytes`` of :func:`memory_limit` or, failing that, of the environment replaces it.

    Raises:
        ValueError: the environment's is not a positive integer.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        raised = _RAISED.get()
        if raised is None:
            raised = _of_environment()
        self.limit = max(_LEAST, _TIMES * self.size) if raised is None else raised
        self.spent = 0

    def spend(self, count: int) -> None:
        """Take ``count`` bytes more; TooLargeError where that is beyond the limit."""
        self.spent += count
        if self.spent > self.limit:
            raise TooLargeError(
                f"{self.path}: expected contents that take at most {self.limit} bytes of memory, "
                f"got {self.size} bytes that declare {self.spent:.3g} or more; if you trust the "
                f"file, max_bytes of checkpoints.load or {ENVIRONMENT} raises the limit"
            )


def _of_environment() -> int | None:
    text = os.environ.get(ENVIRONMENT, "")
    if not text:
        return None
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ValueError(f"{ENVIRONMENT}: expected a number of bytes, at least 1, got {text!r}")
    return value
