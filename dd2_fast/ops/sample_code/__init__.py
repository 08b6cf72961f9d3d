"""``sample_code``: one guided, filtered categorical draw a token."""

from .api import sample_code

__all__ = ["sample_code"]
