"""Sampling: labels in, images out."""

from __future__ import annotations

from .sampler import Sampler, sample
from .sources import bundled_names, resolve_path

__all__ = ["Sampler", "bundled_names", "resolve_path", "sample"]
