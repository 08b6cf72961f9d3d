"""``small_teacher``: all steps of a small teacher in one call; internal."""

from .api import small_teacher

__all__ = ["small_teacher"]
