"""Ground Truth Score loss (paper Eq. 6)."""

from __future__ import annotations

from torch import Tensor

from .target import TeacherDistribution


def gts_loss(velocity: Tensor, x_t: Tensor, t: Tensor, teacher: TeacherDistribution) -> Tensor:
    """``|v_psi - v_teacher(x_t, t)|^2`` with the analytic velocity (paper Eq. 6), per draw.

    Args:
        velocity: the network's ``[*, M, C]`` or ``[*, C]``. x_t: of the same shape. t: ``[*, M]``.
        teacher: distributions of the tokens' rows.
    """
    target = teacher.predict(x_t.detach(), t, "velocity")
    return (velocity - target).square().sum(-1)
