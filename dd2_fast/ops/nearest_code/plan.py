"""How the kernel of ``nearest_code.cuh`` is launched: ``csrc/cuda/nearest_code.cu``."""

from __future__ import annotations

from ..launch import Way
from ..structs import NearestCodeParams

BLOCK_TOKENS = 128  # dd2::kBlockTokens
KERNELS = [f"nearest_code_fwd_kernel<{choice}>" for choice in ("8, false", "32, false", "32, true")]


def plan(p: NearestCodeParams) -> list[Way]:
    """The launch; none where there are no tokens."""
    if p.rows <= 0:
        return []
    kernel = KERNELS[0] if p.dim <= 8 else KERNELS[1] if p.dim <= 32 else KERNELS[2]
    return [Way("nearest_code", kernel, (-(-p.rows // BLOCK_TOKENS), 1))]
