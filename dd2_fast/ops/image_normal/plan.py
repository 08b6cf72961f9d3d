"""How the kernel of ``image_normal.cuh`` is launched: ``csrc/cuda/image_normal.cu``."""

from __future__ import annotations

from ..launch import THREADS, Way
from ..structs import ImageNormalParams

KERNELS = ["image_normal_fwd_kernel"]


def plan(p: ImageNormalParams) -> list[Way]:
    """The launch; none where there are no numbers."""
    counters = p.images * -(-p.count // 4)
    if counters <= 0:
        return []
    return [Way("image_normal", KERNELS[0], (-(-counters // THREADS), 1))]
