"""The draw in plain torch: the specification of every other backend.

With masses ``m_j = exp(l_j - max l)`` of the codes that the filters keep, and one uniform ``u`` in
(0, 1) a row, the draw inverts the CDF in code order: the first ``j`` whose running mass
``m_0 + ... + m_j`` exceeds ``u`` times the total.

Why the inverse and not Gumbel-max: it takes one random number a row instead of one a code, and
only sums in code order, which no backend has to sort for. Masses are single precision, running
sums double (float blocks of at most 256 codes on the CPU), and ``u`` has 52 bits: backends differ
only where ``u`` falls within rounding, about 1e-7 of the total, of the boundary of two codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks
from ..filtering import filter_logits, guided_logits
from ..philox import row_uniform

STREAM = 2  # last counter word; 0 and 1 are the sampler's noise


def sample_code(
    logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    seed: Tensor,
    index: Tensor | None,
    top_k: int,
    top_p: float,
    temperature: float,
) -> Tensor:
    """Codes ``[R]`` drawn under ``logits [R, V]``; ``guidance_scale [R]``, int64 ``seed []``
    or ``[R]``, and ``index [R]`` (None: 0, 1, ...).
    """
    dtype = checks.compute_dtype(logits)
    uncond_logits = None if uncond_logits is None else uncond_logits.to(dtype)
    tempered = guided_logits(logits.to(dtype), uncond_logits, guidance_scale) * (1 / temperature)
    largest = tempered.amax(-1, keepdim=True)
    valid = largest.isfinite()[:, 0]
    kept = filter_logits(tempered.where(valid[:, None], 0), top_k, top_p)
    cumulative = (kept - kept.amax(-1, keepdim=True)).exp().double().cumsum(-1)
    if index is None:
        index = torch.arange(logits.shape[0], device=logits.device)
    target = row_uniform(seed, index, STREAM)[:, None] * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return drawn.where(valid, -1)
