"""Fake Conditional Score loss (paper Eq. 5)."""

from __future__ import annotations

from torch import Tensor


def fcs_loss(velocity: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """``|v_psi - (eps - x)|^2`` on generated tokens (paper Eq. 5), per draw.

    Args:
        velocity: ``[*, M, C]``. x: generated tokens ``[*, C]``, a constant. noise: ``[*, M, C]``.
    """
    return (velocity - (noise - x.detach()[..., None, :])).square().sum(-1)
