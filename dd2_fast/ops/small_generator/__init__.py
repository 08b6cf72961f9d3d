"""``small_generator``: a small generator and its decoder in one call; internal."""

from .api import small_generator

__all__ = ["small_generator"]
