"""``group_norm_silu``: group norm of maps with their channels last, and what surrounds it."""

from .api import group_norm_silu

__all__ = ["group_norm_silu"]
