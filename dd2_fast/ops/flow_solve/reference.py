"""The flow ODE in plain torch: the specification of every other backend.

``dx/dt = (x - x0(x, t)) / t`` runs from ``x = noise`` at ``t = 1`` to ``t = 0`` in ``N`` steps
between the times ``1, (N-1)/N, ..., 1/N, 0``. Heun's second velocity does not exist at ``t = 0``,
so the last step is Euler's, which ends exactly at ``x0(x, 1/N)``. The result is the nearest to it
of the codes that the filters keep.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..conditional_score.reference import conditional_x0
from ..filtering import filter_logits, guided_logits

_DISTANCES = 2**22  # in one chunk


def flow_solve(
    noise: Tensor,
    logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    codebook: Tensor,
    steps: int,
    solver: str,
    top_k: int,
    top_p: float,
) -> Tensor:
    """Codes ``[R, M]`` for ``noise [R, M, C]`` under ``logits [R, V]``.

    Works in the dtype of ``noise`` (float32 or float64); ``guidance_scale [R]`` and
    ``codebook [V, C]`` have it too.
    """
    dtype = noise.dtype
    uncond_logits = None if uncond_logits is None else uncond_logits.to(dtype)
    guided = guided_logits(logits.to(dtype), uncond_logits, guidance_scale)
    kept = filter_logits(guided, top_k, top_p)

    def mean(x: Tensor, t: float) -> Tensor:
        level = x.new_full(x.shape[:-1], t)
        return conditional_x0(x, level, kept, None, guidance_scale, codebook, 0, 1.0)

    x = noise
    for i in range(steps, 1, -1):
        t, s = i / steps, (i - 1) / steps
        velocity = (x - mean(x, t)) / t
        ahead = x + (s - t) * velocity
        if solver == "heun":
            x = x + (s - t) / 2 * (velocity + (ahead - mean(ahead, s)) / s)
        else:
            x = ahead
    end = mean(x, 1 / steps)
    chunk = max(1, _DISTANCES // (codebook.shape[0] * max(1, noise.shape[1])))
    parts = zip(end.split(chunk), kept.split(chunk), strict=True)
    return torch.cat([_nearest(*part, codebook) for part in parts])


def _nearest(x: Tensor, kept: Tensor, codebook: Tensor) -> Tensor:
    """The first of the nearest codes, -1 where none is at a finite distance."""
    distance = torch.cdist(x, codebook, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance.nan_to_num(nan=torch.inf, posinf=torch.inf)
    distance = distance.masked_fill((kept == -torch.inf)[:, None, :], torch.inf)
    return distance.argmin(-1).where(distance.amin(-1) < torch.inf, -1)
