"""How the kernel of ``sample_code.cuh`` is launched: ``csrc/cuda/sample_code.cu``."""

from __future__ import annotations

from itertools import product

from ..launch import Way
from ..structs import LOGIT_TYPES, SampleCodeParams


def _name(logit_type: str, staged: bool) -> str:
    return f"sample_code_fwd_kernel<LogitType::{logit_type}, {str(staged).lower()}>"


KERNELS = [_name(*choice) for choice in product(LOGIT_TYPES, (False, True))]


def way(p: SampleCodeParams, *, staged: bool) -> Way:
    """The launch with a row's logits in shared memory, or without."""
    kernel = _name(LOGIT_TYPES[p.teacher.logit_type], staged)
    shared = 4 * p.teacher.staged_floats() if staged else 0
    return Way("sample_code", kernel, (p.teacher.rows, 1), shared)


def plan(p: SampleCodeParams) -> list[Way]:
    """Launches to try in this order: rows are staged where they fit."""
    if p.teacher.rows <= 0:
        return []
    return [way(p, staged=True), way(p, staged=False)]
