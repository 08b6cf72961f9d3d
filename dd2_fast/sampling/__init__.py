"""Sampling: labels in, images out."""

from __future__ import annotations

from ..processes import process_group
from .batching import BatchingSampler
from .exporting import export
from .jobs import balanced_labels, run_job
from .sampler import Sampler, sample
from .sinks import NpzFile, PngFolder
from .sources import bundled_names, resolve_path

__all__ = [
    "BatchingSampler",
    "NpzFile",
    "PngFolder",
    "Sampler",
    "balanced_labels",
    "bundled_names",
    "export",
    "process_group",
    "resolve_path",
    "run_job",
    "sample",
]
