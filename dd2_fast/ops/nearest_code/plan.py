"""How the kernel of ``nearest_code.cuh`` is launched: ``csrc/cuda/nearest_code.cu``."""

from __future__ import annotations

from itertools import product

from ..launch import Way
from ..structs import NearestCodeParams

# A block's tokens: NearestShape::kBlockTokens of many and of few tokens.
MANY, FEW = 128, 8


def _name(dim: int, few: bool) -> str:
    width = 8 if dim <= 8 else 32
    return f"nearest_code_fwd_kernel<{width}, {dim > 32}, {few}>".lower()


KERNELS = [_name(*choice) for choice in product((8, 32, 33), (False, True))]


def plan(p: NearestCodeParams, processors: int) -> list[Way]:
    """The launch; none where there are no tokens."""
    if p.rows <= 0:
        return []
    few = 2 * -(-p.rows // MANY) <= processors
    return [Way("nearest_code", _name(p.dim, few), (-(-p.rows // (FEW if few else MANY)), 1))]
