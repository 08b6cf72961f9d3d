"""Public ``group_norm_silu``: validation and shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, derivatives
from . import schema as schema

_group_norm_silu = torch.ops.dd2_fast.group_norm_silu.default


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    eps: float,
    activation: str | None = "silu",
    pre_bias: Tensor | None = None,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Group norm and SiLU of a convolution's output, of maps with their channels last; inference.

        s = x + pre_bias + residual
        y = f((s - mean) / sqrt(var + eps) weight + bias),    f(z) = z / (1 + exp(-z)) or z

    with the mean and the (biased) variance of each image's group of ``C / groups`` neighbouring
    channels over all pixels. Statistics and sums are in float32 or wider, the variance from squares
    about a mean. ``s`` is rounded where it is returned, and ``y`` is of what is returned.

    Args:
        x: ``[B, C, *]`` in float32, bfloat16 or float16 (float64 by the backend ``torch``). In
            memory the channels are last, as in ``torch.channels_last``; others are copied to that.
        weight: ``[C]``. bias: ``[C]``.
        groups: a divisor of C.
        eps: added to the variance, positive.
        activation: ``"silu"``, or None for the norm alone.
        pre_bias: ``[C]``, the bias of the convolution that made ``x`` without it.
        residual: like ``x``, what a residual block adds.
        backend: a name in :func:`available_backends`, or None for the fastest that can run.

    Returns:
        ``y`` like ``x`` with its channels last in memory; with a residual ``(s, y)``, both so.
        Images and groups are apart: a NaN or infinity spoils its own alone. There is no derivative.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value, or requires a
            gradient.
        RuntimeError: the named backend cannot run here; the message says why.

    Source: Wu and He, Group normalization (arXiv 1803.08494), Eq. 1, 2, 6 and 7.
    """
    checks.check_tensor("x", x)
    if x.ndim < 2 or x.shape[1] < 1:
        raise ValueError(f"x: expected shape [B, C, *] with C >= 1, got {list(x.shape)}")
    batch, channels = x.shape[:2]
    vectors = {"weight": weight, "bias": bias}
    if pre_bias is not None:
        vectors["pre_bias"] = pre_bias
    for name, vector in vectors.items():
        checks.check_tensor(name, vector)
        checks.check_shape(name, vector, [channels], "[C], C of x")
    if residual is not None:
        checks.check_tensor("residual", residual, (x.dtype,))
        checks.check_shape("residual", residual, x.shape, "that of x")
    checks.check_same_device("x", x, **vectors, residual=residual)
    checks.check_constant(x=x, **vectors, residual=residual)
    derivatives.check_no_tangent("group_norm_silu", x, *vectors.values(), residual)
    groups = checks.check_count("groups", groups)
    if channels % groups:
        raise ValueError(f"groups: expected a divisor of C = {channels} (from x), got {groups}")
    eps = checks.check_number("eps", eps)
    if not eps > 0:
        raise ValueError(f"eps: expected a positive number, got {eps}")
    if activation is not None:
        checks.check_choice("activation", activation, ("silu",))
    total, y = _group_norm_silu(
        _pixels(x), weight, bias, groups, eps, activation is not None, pre_bias,
        None if residual is None else _pixels(residual), checks.check_backend(backend),
    )  # fmt: skip
    shape = (batch, *x.shape[2:], channels)
    y = y.view(shape).movedim(-1, 1)
    return y if residual is None else (total.view(shape).movedim(-1, 1), y)


def _pixels(x: Tensor) -> Tensor:
    """``[B, pixels, C]`` of ``[B, C, *]``: a view where channels are last in memory."""
    return x.movedim(1, -1).reshape(x.shape[0], x.shape[2:].numel(), x.shape[1])
