"""``add_norm_modulate``: a gated residual addition, LayerNorm or RMSNorm, and its modulation."""

from .api import add_norm_modulate

__all__ = ["add_norm_modulate"]
