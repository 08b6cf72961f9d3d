"""Conditional Score Distillation loss (paper Eq. 4)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import ops
from .target import TeacherDistribution


def csd_loss(
    x: Tensor,
    x_t: Tensor,
    t: Tensor,
    fake_x0: Tensor,
    teacher: TeacherDistribution,
    **settings: Any,
) -> Tensor:
    """The generator's loss at every token and draw (paper Eq. 4), unreduced, in one pass.

    Args:
        x: generated tokens ``[*, C]``.
        x_t: ``x`` noised, ``[*, C]`` or ``[*, M, C]``. t: its noise level.
        fake_x0: ``F``, the guidance network's posterior mean, of the shape of ``x_t``.
        teacher: distributions of the tokens' rows.
        settings: ``objective``, ``alpha``, ``weight``, ``weight_power`` and ``backend`` of
            :func:`dd2_fast.ops.csd_loss`, which has the formula and the errors.
    """
    return ops.csd_loss(
        x,
        x_t,
        t,
        fake_x0,
        teacher.logits,
        teacher.codebook,
        uncond_logits=teacher.uncond_logits,
        guidance_scale=teacher.guidance_scale,
        top_k=teacher.top_k,
        top_p=teacher.top_p,
        **settings,
    )
