"""k-means of vectors, where codes start."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..ops import nearest_code

_LLOYD_STEPS = 12


def means(
    rows: Tensor,
    count: int,
    generator: torch.Generator,
    onto: Callable[[Tensor], Tensor] = lambda means: means,
) -> Tensor:
    """k-means of ``rows [N, C]`` from random ones, ``[count, C]``; where there are fewer rows than
    means, copies that are moved a little.

    Args:
        onto: where means have to lie, after every step: on the sphere, for rows that do.
    """
    chosen = torch.randint(len(rows), (count,), generator=generator)
    if len(rows) >= count:
        chosen = torch.randperm(len(rows), generator=generator)[:count]
    found = rows[chosen.to(rows.device)]
    noise = torch.randn(found.shape, generator=generator).to(found.device)
    found = onto(found + 1e-3 * rows.std() * noise)
    for _ in range(_LLOYD_STEPS):
        codes = nearest_code(rows, found)
        counts = torch.bincount(codes, minlength=count)
        sums = torch.zeros_like(found).index_add_(0, codes, rows)
        used = counts > 0
        found[used] = onto(sums[used] / counts[used, None])
    return found
