"""NVTX ranges, which Nsight shows."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

annotate: Any
try:
    import nvtx

    annotate = nvtx.annotate
except ModuleNotFoundError:  # a checkout on a machine where nothing can be installed
    # torch's own ranges come with its CUDA builds alone; its CPU builds raise.
    annotate = contextlib.nullcontext if torch.version.cuda is None else torch.cuda.nvtx.range
