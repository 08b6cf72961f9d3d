"""Conditional Score Distillation loss (paper Eq. 4)."""

from __future__ import annotations

from torch import Tensor

OBJECTIVES = ("sid", "dmd")
WEIGHTS = ("none", "sid")
_SMALLEST = 1e-5


def csd_weight(x: Tensor, teacher_x0: Tensor, power: float = 1.0) -> Tensor:
    """``mean_c|x - D| ** -power``, detached, per draw: 1 is SiD's weight, 0 is none.

    Args:
        x: generated tokens ``[*, C]``, or ``[*, 1, C]`` for draws. teacher_x0: ``D [*, M, C]``.
    """
    distance = (x - teacher_x0).detach().abs().mean(-1)
    return distance.clamp(min=_SMALLEST).pow(-power)


def csd_loss(
    x: Tensor,
    teacher_x0: Tensor,
    fake_x0: Tensor,
    *,
    objective: str = "sid",
    alpha: float = 1.0,
    weight: str | Tensor = "sid",
) -> Tensor:
    """Generator's loss at every token and draw (paper Eq. 4), unreduced.

    With ``D`` the teacher's and ``F`` the guidance network's posterior mean of ``x_t``:

        "sid"   w (D - F)·(D - x - alpha (D - F))   gradients through x, D and F
        "dmd"   w (F - D)·x                         F - D detached, gradient through x only

    Args:
        x: generated tokens ``[*, C]``, or ``[*, M, C]`` already expanded to the draws.
        teacher_x0: ``D`` of shape ``[*, C]`` or ``[*, M, C]``. fake_x0: ``F``, of the same shape.
        objective: ``"sid"`` or ``"dmd"``. alpha: SiD's, 1 in the paper.
        weight: ``"none"``, ``"sid"`` (:func:`csd_weight`), or a tensor that broadcasts to the loss.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}")
    if x.ndim == teacher_x0.ndim - 1:
        x = x[..., None, :]
    if isinstance(weight, Tensor):
        factor = weight
    elif weight in WEIGHTS:
        factor = csd_weight(x, teacher_x0, WEIGHTS.index(weight))
    else:
        raise ValueError(
            f"weight: expected one of {', '.join(WEIGHTS)} or a tensor, got {weight!r}"
        )
    if objective == "dmd":
        return factor * ((fake_x0 - teacher_x0).detach() * x).sum(-1)
    difference = teacher_x0 - fake_x0
    return factor * (difference * (teacher_x0 - x - alpha * difference)).sum(-1)
