"""The noise by the kernel of ``csrc/include/dd2/image_normal.cuh``, compiled by NVRTC."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..launch import cupy_launcher
from . import native


def image_normal(
    seeds: Tensor | None, seed: int, indices: Tensor, shape: Sequence[int], stream: int
) -> Tensor:
    """Normals; arguments as in :mod:`.reference`."""
    launch = cupy_launcher("image_normal", indices.device)
    return native.run(launch, seeds, seed, indices, shape, stream)
