"""Public operators. Shapes, units and formulas are in each function's docstring."""

from .conditional_score import conditional_score
from .registry import available_backends

__all__ = ["available_backends", "conditional_score"]
