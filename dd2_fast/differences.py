"""Where two sets of settings differ, for the jobs and runs that go on only with the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .reading import shown


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Found and wanted value of each name whose values differ, by name; None for one not there."""
    return {
        name: (found.get(name), wanted.get(name))
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    }


def described(different: Mapping[str, tuple[Any, Any]], found: str, wanted: str) -> str:
    """Text of :func:`differences`, as in ``seed (saved 0, now 1)`` of found "saved", wanted
    "now"."""
    return ", ".join(
        f"{shown(n)} ({found} {a!r}, {wanted} {b!r})" for n, (a, b) in different.items()
    )
