"""The CSD loss in plain torch: the specification of every other backend.

With ``D`` the teacher's posterior mean of ``x_t`` (its Jacobian ``J`` is symmetric) and ``F`` the
guidance network's (paper Eq. 4)

    "sid"  L = w (D - F)·(D - x - alpha (D - F))          "dmd"  L = w (F - D)·x, F - D constant

and, in "sid", with ``w`` constant

    dL/dx = -w (D - F)          dL/dF = -w (D - x - 2 alpha (D - F))
    dL/dx_t = J dL/dD           dL/dD =  w (D - x + (1 - 2 alpha) (D - F))

At ``alpha = 1`` the last is ``w (F - x)``: known before the pass over the logits that gives ``D``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..conditional_score.reference import conditional_x0, conditional_x0_vjp

SMALLEST_DISTANCE = 1e-5


def csd_loss(
    x: Tensor,
    fake_x0: Tensor,
    weight: Tensor | None,
    weight_power: float,
    objective: str,
    alpha: float,
    wants_x_t: bool,
    x_t: Tensor,
    *posterior: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss ``[R, M]`` and its gradients ``[R, M, C]`` in ``x`` (``x_t`` held), ``F`` and ``x_t``.

    Args:
        x: ``[R, C]``. fake_x0: ``F [R, M, C]``. weight: ``[R, M]`` or None.
        weight_power: ``w = mean_c|x - D| ** -weight_power`` where the weight is None.
        objective: ``"sid"``, or ``"dmd"`` with the gradient in ``x`` alone.
        wants_x_t: False leaves out the gradient in ``x_t``.
        x_t, posterior: the arguments of ``conditional_score``'s reference.

    Returns:
        The four; the gradient in ``x_t`` is the one in ``D``, J not applied, where alpha is not 1.
        A gradient that is left out is empty.
    """
    x = x[:, None]
    teacher_x0 = conditional_x0(x_t, *posterior)
    if weight is None:
        distance = (x - teacher_x0).abs().mean(-1, keepdim=True)
        factor = distance.clamp(min=SMALLEST_DISTANCE) ** -weight_power
    else:
        factor = weight[..., None]
    difference = teacher_x0 - fake_x0
    grad_x = -factor * difference
    if objective == "dmd":
        return (grad_x * x).sum(-1), grad_x, x_t.new_empty(0), x_t.new_empty(0)
    other = teacher_x0 - x - alpha * difference
    loss = (factor * difference * other).sum(-1)
    grad_fake = factor * (alpha * difference - other)
    if not wants_x_t:
        return loss, grad_x, grad_fake, x_t.new_empty(0)
    if alpha == 1:
        return loss, grad_x, grad_fake, factor * conditional_x0_vjp(fake_x0 - x, x_t, *posterior)
    return loss, grad_x, grad_fake, factor * (other + (1 - alpha) * difference)
