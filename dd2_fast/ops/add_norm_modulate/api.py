"""Public ``add_norm_modulate``: validation and shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, derivatives
from . import reference
from . import schema as schema

NORMS = ("layer", "rms")

_add_norm_modulate = torch.ops.dd2_fast.add_norm_modulate.default


def add_norm_modulate(
    h: Tensor,
    *,
    branch: Tensor | None = None,
    gate: Tensor | None = None,
    bias: Tensor | None = None,
    weight: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    norm: str = "layer",
    eps: float,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """What lies between two products of a transformer: a gated residual addition, the norm after
    it and the norm's modulation, in one pass.

        h' = h + gate (branch + bias)
        y  = N(h') (1 + scale) + shift,   or N(h') weight + shift

    with N the LayerNorm ``(x - mean) / sqrt(var + eps)`` or the RMSNorm ``x / sqrt(mean x^2 +
    eps)`` over the last axis. Sums and products are taken in float32 or wider and each result is
    rounded once; the norm is that of ``h'`` as it is returned. Differentiable once, in reverse
    mode, in every tensor; the backward pass reads ``h'`` and two numbers a row, works out the rest
    again, and adds without atomics, in a fixed order.

    While torch.compile traces, the operations are plain torch's, for Inductor to fuse with what is
    around them, unless ``backend`` is named.

    Args:
        h: ``[B, n, D]``, B images of n tokens; float32, bfloat16 or float16 (float64 by the backend
            ``torch``). Rows may have any stride.
        branch: ``[B, n, D]``. None: ``h'`` is ``h``, and there is neither ``gate`` nor ``bias``.
        gate: of the branch, ``[D]``, one a row ``[B, n, D]`` or one an image ``[B, D]`` or
            ``[B, 1, D]``, of rows with any stride. None: 1.
        bias: ``[D]``. None: 0.
        weight: factor of the norm, of the shapes of ``gate``. None: 1.
        shift: of the shapes of ``gate``. None: 0.
        scale: in the place of ``weight``, of the same shapes.
        norm: ``"layer"`` or ``"rms"``.
        eps: positive.
        backend: a name in :func:`available_backends`, or None for the fastest that can run.

    Returns:
        ``h'`` and ``y``, ``[B, n, D]`` in the dtype of ``h``; tensors may have different dtypes.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value.
        RuntimeError: the named backend cannot run here, or a derivative does not exist; the message
            says why.

    Source: adaptive LayerNorm of DiT (arXiv 2212.09748), as in VAR (arXiv 2404.02905) and MAR's
    head (arXiv 2406.11838); RMSNorm (arXiv 1910.07467), as in LlamaGen (arXiv 2406.06525).
    """
    checks.check_tensor("h", h)
    if h.ndim != 3 or h.shape[2] == 0:
        raise ValueError(f"h: expected shape [B, n, D] with D >= 1, got {list(h.shape)}")
    rows = {"gate": gate, "weight": weight, "shift": shift, "scale": scale}
    tensors = {"branch": branch, "bias": bias, **rows}
    for name, value in tensors.items():
        if value is not None:
            checks.check_tensor(name, value)
    checks.check_same_device("h", h, **tensors)
    if branch is not None:
        checks.check_shape("branch", branch, h.shape, "that of h")
    for name in ("gate", "bias"):
        if branch is None and tensors[name] is not None:
            raise ValueError(f"{name}: expected None without a branch, got a tensor")
    if bias is not None:
        checks.check_shape("bias", bias, h.shape[2:], "[D]")
    if weight is not None and scale is not None:
        raise ValueError("scale: expected None beside a weight, got a tensor")
    checks.check_choice("norm", norm, NORMS)
    eps = checks.check_number("eps", eps)
    if not eps > 0:
        raise ValueError(f"eps: expected a positive number, got {eps}")
    name = checks.check_backend(backend)
    derivatives.check_reverse_mode("add_norm_modulate", h, *tensors.values())
    gate, weight, shift, scale = (_of_rows(key, rows[key], h) for key in rows)
    gain = weight if scale is None else scale
    arguments = (h, branch, gate, bias, gain, shift, scale is not None, norm == "layer", eps)
    if backend is None and torch.compiler.is_compiling():
        total, y, _, _ = reference.add_norm_modulate(*arguments)
    else:
        total, y, _, _ = _add_norm_modulate(*arguments, name)
    return h if branch is None else total, y


def _of_rows(name: str, value: Tensor | None, h: Tensor) -> Tensor | None:
    """``[1, 1, D]``, ``[B, 1, D]`` or ``[B, n, D]`` of one of the shapes that are allowed."""
    if value is None:
        return None
    batch, count, width = h.shape
    if value.ndim == 1:
        value = value[None]
    if value.ndim == 2:
        value = value[:, None]
    fits = value.ndim == 3 and value.shape[2] == width
    if not fits or value.shape[0] not in (1, batch) or value.shape[1] not in (1, count):
        raise ValueError(
            f"{name}: expected shape [D], [B, D], [B, 1, D] or [B, n, D] with B = {batch}, "
            f"n = {count}, D = {width}, got {list(value.shape)}"
        )
    return value if value.shape[1] == 1 else value.expand(batch, -1, -1)
