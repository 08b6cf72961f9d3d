"""The addition, norm and modulation in plain torch: the specification of every other backend."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import checks


def add_norm_modulate(
    h: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    bias: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    plus_one: bool,
    centred: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``h + gate (branch + bias)``, empty without a branch, its modulated norm, and the mean and
    the inverse deviation of every row ``[B, n]``; no mean of an RMSNorm's.

    ``gate, gain, shift``: ``[1, 1, D]``, ``[B, 1, D]`` or ``[B, n, D]``. The factor of the norm is
    ``gain``, or with ``plus_one`` ``1 + gain``.
    """
    wide = checks.compute_dtype(h, branch, gate, bias, gain, shift)
    total = h
    if branch is not None:
        added = branch.to(wide)
        if bias is not None:
            added = added + bias.to(wide)
        if gate is not None:
            added = added * gate.to(wide)
        total = (h.to(wide) + added).to(h.dtype)
    x = total.to(wide)
    mean = x.mean(-1, keepdim=True) if centred else x.new_empty(0)
    if centred:
        x = x - mean
    rstd = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = x * rstd
    if gain is not None:
        y = y * (gain.to(wide) + 1 if plus_one else gain.to(wide))
    if shift is not None:
        y = y + shift.to(wide)
    y = y.to(h.dtype).contiguous()
    total = h.new_empty(0) if branch is None else total.contiguous()
    return total, y, mean.squeeze(-1) if centred else mean, rstd.squeeze(-1)


def add_norm_modulate_backward(
    grad_total: Tensor | None,
    grad_y: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    bias: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    plus_one: bool,
    centred: bool,
    wants: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients in ``h, branch, gate, bias, gain, shift``, empty where ``wants`` says so.

    With ``x`` the normed rows, ``z = (x - mean) rstd`` and ``d = grad_y`` times the norm's factor,

        grad_h = grad_total + rstd (d - mean(d) - z mean(d z))

    without ``mean(d)`` for an RMSNorm.
    """
    wide = checks.compute_dtype(x, branch, gate, bias, gain, shift)
    z = (x.to(wide) - mean[..., None] if centred else x.to(wide)) * rstd[..., None]
    grad_y = grad_y.to(wide)
    d = grad_y
    if gain is not None:
        d = d * (gain.to(wide) + 1 if plus_one else gain.to(wide))
    grad = d - z * (d * z).mean(-1, keepdim=True)
    if centred:
        grad = grad - d.mean(-1, keepdim=True)
    grad = grad * rstd[..., None]
    if grad_total is not None:
        grad = grad + grad_total.to(wide)
    found = [x.new_empty(0)] * 6
    if wants[0]:
        found[0] = grad.to(x.dtype).contiguous()
    if branch is not None:
        of_branch = grad if gate is None else grad * gate.to(wide)
        if wants[1]:
            found[1] = of_branch.to(branch.dtype).contiguous()
        if wants[2] and gate is not None:
            added = branch.to(wide) if bias is None else branch.to(wide) + bias.to(wide)
            found[2] = _summed(grad * added, gate)
        if wants[3] and bias is not None:
            found[3] = of_branch.sum((0, 1)).to(bias.dtype)
    if wants[4] and gain is not None:
        found[4] = _summed(grad_y * z, gain)
    if wants[5] and shift is not None:
        found[5] = _summed(grad_y, shift)
    return tuple(found)


def _summed(grad: Tensor, like: Tensor) -> Tensor:
    return grad.sum_to_size(like.shape).to(like.dtype).contiguous()
