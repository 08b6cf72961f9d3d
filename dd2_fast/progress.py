"""Progress bars on standard error."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from tqdm import tqdm


class _StandardError:
    """Standard error for a bar, which must not end the work when nobody reads it any more."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def progress_bar(total: int, *, show: bool, unit: str = "image", **settings: Any) -> tqdm:
    """A bar of tqdm; it stays silent where standard error is closed, and where its end is."""
    if sys.stderr is None:  # as in `2>&-`
        show = False
    return tqdm(total=total, unit=unit, disable=not show, file=_StandardError(), **settings)
