"""How the kernel of ``flow_solve.cuh`` is launched: ``csrc/cuda/flow_solve.cu``."""

from __future__ import annotations

from itertools import product

from ..launch import Way
from ..structs import LOGIT_TYPES, FlowSolveParams

_WIDTHS = (8, 32)  # dimensions that a thread accumulates at a time


def _name(logit_type: str, width: int, staged: bool) -> str:
    return f"flow_solve_fwd_kernel<LogitType::{logit_type}, {width}, {str(staged).lower()}>"


KERNELS = [_name(*choice) for choice in product(LOGIT_TYPES, _WIDTHS, (False, True))]


def way(p: FlowSolveParams, *, staged: bool, blocks: int = 1) -> Way:
    """The launch with a row's guided logits in shared memory, or without; ``blocks`` share the
    draws of a row."""
    width = _WIDTHS[0] if p.dim <= _WIDTHS[0] else _WIDTHS[1]
    kernel = _name(LOGIT_TYPES[p.teacher.logit_type], width, staged)
    floats = 4 * -(-p.dim // width) * width + (p.teacher.staged_floats() if staged else 0)
    return Way("flow_solve", kernel, (p.teacher.rows, blocks), 4 * floats)


def plan(p: FlowSolveParams, processors: int) -> list[Way]:
    """Launches to try in this order: filtered rows are staged where they fit."""
    if p.teacher.rows <= 0 or p.draws <= 0:
        return []
    blocks = min(-(-2 * processors // p.teacher.rows), p.draws)
    staged = (True, False) if p.teacher.filtered() else (False,)
    return [way(p, staged=s, blocks=blocks) for s in staged]
