"""The noise by the CUDA kernel of ``csrc/include/dd2/image_normal.cuh``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..native import cuda_launcher
from . import native


def image_normal(
    seeds: Tensor | None, seed: int, indices: Tensor, shape: Sequence[int], stream: int
) -> Tensor:
    """Normals; arguments as in :mod:`.reference`."""
    launch = cuda_launcher("image_normal", indices.device)
    return native.run(launch, seeds, seed, indices, shape, stream)
