"""``nearest_code``: the code nearest to each vector."""

from .api import nearest_code

__all__ = ["nearest_code"]
