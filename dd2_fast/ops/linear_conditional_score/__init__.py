"""``linear_conditional_score``: the conditional score from the hidden states under a head."""

from .api import linear_conditional_score

__all__ = ["linear_conditional_score"]
