"""``flow_solve``: Distilled Decoding 1's map from noise to a code."""

from .api import flow_solve

__all__ = ["flow_solve"]
