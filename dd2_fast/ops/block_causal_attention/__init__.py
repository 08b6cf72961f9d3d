"""``block_causal_attention``: attention over blocks of tokens that see their own and lower ones."""

from .api import block_causal_attention

__all__ = ["block_causal_attention"]
