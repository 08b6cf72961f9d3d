"""``conditional_score``: the teacher's closed-form score at every token."""

from .api import conditional_score

__all__ = ["conditional_score"]
