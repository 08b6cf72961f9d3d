"""The noise by the C++ kernel of ``csrc/cpu/image_normal.cpp``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..native import cpu_launcher
from . import native


def image_normal(
    seeds: Tensor | None, seed: int, indices: Tensor, shape: Sequence[int], stream: int
) -> Tensor:
    """Normals; arguments as in :mod:`.reference`."""
    launch = cpu_launcher("image_normal")
    return native.run(launch, seeds, seed, indices, shape, stream)
