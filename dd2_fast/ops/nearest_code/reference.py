"""The nearest code in plain torch: the specification of every other backend.

Distances are direct differences, a chunk of vectors at a time, so equal codes tie exactly and the
first of them is found. (A matrix product may round equal columns differently.)
"""

from __future__ import annotations

import torch
from torch import Tensor

_DISTANCES = 2**22  # in one chunk


def nearest_code(x: Tensor, codebook: Tensor) -> Tensor:
    """Indices ``[R]`` of the rows of ``codebook [V, C]`` nearest to ``x [R, C]``, or -1."""
    chunk = max(1, _DISTANCES // codebook.shape[0])
    return torch.cat([_nearest(part, codebook) for part in x.split(chunk)])


def _nearest(x: Tensor, codebook: Tensor) -> Tensor:
    distance = torch.cdist(x, codebook, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance.nan_to_num(nan=torch.inf, posinf=torch.inf)
    return distance.argmin(-1).where(distance.amin(-1) < torch.inf, -1)
