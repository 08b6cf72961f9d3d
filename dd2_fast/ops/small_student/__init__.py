"""``small_student``: a small logit student, passes of its teacher and its decoder in one call;
internal."""

from .api import small_student

__all__ = ["small_student"]
