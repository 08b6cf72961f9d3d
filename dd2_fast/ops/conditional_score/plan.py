"""How the kernel of ``conditional_score.cuh`` is launched, without a workspace for tensor cores:
``csrc/cuda/conditional_score.cu``."""

from __future__ import annotations

from itertools import product

from ..launch import Way
from ..structs import LOGIT_TYPES, ConditionalScoreParams

_WIDTHS = (8, 32)  # dimensions a block accumulates at a time


def _name(logit_type: str, width: int, jacobian: bool, staged: bool) -> str:
    flags = f"{jacobian}, {staged}".lower()
    return f"conditional_score_fwd_kernel<LogitType::{logit_type}, {width}, {flags}>"


KERNELS = [_name(*choice) for choice in product(LOGIT_TYPES, _WIDTHS, (False, True), (False, True))]


def way(p: ConditionalScoreParams, *, staged: bool) -> Way:
    """The launch with a row's guided logits in shared memory, or without."""
    width = _WIDTHS[0] if p.dim <= _WIDTHS[0] else _WIDTHS[1]
    blocks = -(-p.dim // width)
    kernel = _name(LOGIT_TYPES[p.teacher.logit_type], width, bool(p.direction), staged)
    floats = 4 * blocks * width + (p.teacher.staged_floats() if staged else 0)
    grid = p.teacher.rows, 1 if p.csd.loss else blocks
    return Way("conditional_score", kernel, grid, 4 * floats)


def plan(p: ConditionalScoreParams) -> list[Way]:
    """Launches to try in this order: filtered rows are staged where they fit."""
    if p.teacher.rows <= 0 or p.draws <= 0:
        return []
    staged = (True, False) if p.teacher.filtered() else (False,)
    return [way(p, staged=s) for s in staged]
