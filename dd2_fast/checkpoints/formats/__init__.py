"""The released kinds of file, one module a family."""

from __future__ import annotations

from . import llamagen, var
from .base import Format

FORMATS: tuple[Format, ...] = (*var.FORMATS, *llamagen.FORMATS)

__all__ = ["FORMATS", "Format"]
