"""Public ``block_causal_attention``: validation and shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import checks, derivatives
from . import schema as schema

_block_causal_attention = torch.ops.dd2_fast.block_causal_attention.default


def block_causal_attention(
    qkv: Tensor,
    ends: Sequence[int] | None = None,
    *,
    gain: Tensor | None = None,
    rotary: Tensor | None = None,
    strict: bool = False,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attention in which tokens see their own block of tokens and those before it; inference.

        out_i = sum_j p_ij v_j,    p_ij ∝ exp(scale q_i·k_j) over the keys j that token i sees

    Queries, keys and values are read as one product leaves them and the result is written as the
    next product reads it; no mask is made. Products are accumulated and the softmax is taken in
    float32 or wider, the result is rounded once; the compiled backends round turned queries and
    keys, and the softmax's weights, to the dtype of ``qkv``, as products on tensor cores read them.

    Args:
        qkv: queries, keys and values ``[B, n, 3, H, d]``, of H heads of d channels, in float32,
            bfloat16 or float16 (float64 by the backend ``torch``).
        ends: where each block of tokens ends, rising to n: ``(1, 5, 14)`` are blocks of 1, 4 and 9
            tokens. None: each token is a block, causal attention.
        gain: ``[H]``: queries and keys are divided by their lengths (at least 1e-12) first, and the
            scores of a head are times its gain.
        rotary: cosines and sines ``[n, d / 2, 2]`` of every token, by which neighbouring channels
            of queries and keys are turned: (a, b) becomes (a cos - b sin, b cos + a sin).
        strict: tokens see strictly lower blocks and, of their own, themselves alone.
        scale: of the scores, positive; None is ``1 / sqrt(d)``, or 1 with ``gain``.
        backend: a name in :func:`available_backends`, or None for the fastest that can run.

    Returns:
        ``[B, n, H d]`` in the dtype of ``qkv``. There is no derivative.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value, or requires a
            gradient; the values of tensors are not read, which would stall a GPU.
        RuntimeError: the named backend cannot run here; the message says why.

    Source: VAR (arXiv 2404.02905), Sec. 3.2: its scales and, with ``gain``, its normalised queries
    and keys; DD1 (arXiv 2412.17153): ``strict``; RoFormer (arXiv 2104.09864): ``rotary``.
    """
    checks.check_tensor("qkv", qkv)
    if qkv.ndim != 5 or qkv.shape[2] != 3 or 0 in qkv.shape[3:]:
        raise ValueError(
            f"qkv: expected shape [B, n, 3, H, d] with H, d >= 1, got {list(qkv.shape)}"
        )
    _, count, _, heads, size = qkv.shape
    if gain is not None:
        checks.check_tensor("gain", gain)
        checks.check_shape("gain", gain, [heads], "[H], one of a head of qkv")
    if rotary is not None:
        checks.check_tensor("rotary", rotary)
        if size % 2:
            raise ValueError(f"qkv: expected heads of an even size to be turned, got d = {size}")
        checks.check_shape("rotary", rotary, [count, size // 2, 2], "[n, d / 2, 2]")
    checks.check_same_device("qkv", qkv, gain=gain, rotary=rotary)
    tensors = {"qkv": qkv, "gain": gain, "rotary": rotary}
    checks.check_constant(**tensors)
    derivatives.check_no_tangent("block_causal_attention", *tensors.values())
    if not isinstance(strict, bool):
        raise TypeError(f"strict: expected a bool, got {checks.type_name(strict)}")
    if scale is None:
        scale = 1 / math.sqrt(size) if gain is None else 1.0
    scale = checks.check_number("scale", scale, "a number or None")
    if not scale > 0:
        raise ValueError(f"scale: expected a positive number, got {scale}")
    blocks = [] if ends is None else _check_ends(ends, count)
    name = checks.check_backend(backend)
    return _block_causal_attention(qkv, blocks, gain, rotary, strict, scale, name)


def _check_ends(ends: Sequence[int], count: int) -> list[int]:
    """The ends; none where each token is a block, of which ``strict`` says the same."""
    if isinstance(ends, str) or not isinstance(ends, Sequence):
        raise TypeError(f"ends: expected a list of integers, got {checks.type_name(ends)}")
    found = [checks.integer("ends", end, "a list of integers") for end in ends]
    rising = all(low < high for low, high in zip([0, *found], found, strict=False))
    if not rising or (found[-1] if found else 0) != count:
        raise ValueError(
            f"ends: expected integers that rise from above 0 to n = {count}, got {found}"
        )
    return [] if len(found) == count else found
