"""Argument checks of the operators over a teacher's logits: guidance, filters, codebook, tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import (
    check_constant,
    check_number,
    check_range,
    check_same_device,
    check_shape,
    check_tensor,
    integer,
    real,
)

_NUMBER_OR_TENSOR = "a number or a torch.Tensor"
_BELOW_ONE = 1 - 2.0**-24  # the largest float32 below it


def check_filters(top_k: Any, top_p: Any) -> tuple[int, float]:
    """Both, in ranges that mean to float32 kernels what they mean here: top_p is off at 1 alone."""
    top_k, top_p = integer("top_k", top_k), real("top_p", top_p, "a float")
    if top_k < 0:
        raise ValueError(f"top_k: expected 0 (off) or a positive count, got {top_k}")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p: expected a probability in (0, 1], got {top_p}")
    return top_k, 1.0 if top_p == 1 else min(float(top_p), _BELOW_ONE)


def check_logits(
    logits: Any,
    uncond_logits: Any,
    guidance_scale: Any,
    top_k: Any,
    top_p: Any,
    name: str = "logits",
) -> tuple[int, float]:
    """The arguments that every operator over a teacher's logits ``[*, V]``, called ``name``,
    shares; returns the filters."""
    check_tensor(name, logits)
    filters = check_filters(top_k, top_p)
    if logits.ndim < 1 or logits.shape[-1] < 1:
        raise ValueError(f"{name}: expected shape [*, V] with V >= 1, got {list(logits.shape)}")
    if uncond_logits is not None:
        check_tensor("uncond_logits", uncond_logits, (logits.dtype,))
        check_shape("uncond_logits", uncond_logits, logits.shape, f"that of {name}")
    check_same_device(name, logits, uncond_logits=uncond_logits)
    check_constant(**{name: logits}, uncond_logits=uncond_logits)
    check_guidance(guidance_scale, "uncond_logits", uncond_logits)
    return filters


def check_guidance(guidance_scale: Any, uncond_name: str, uncond: Tensor | None) -> None:
    if isinstance(guidance_scale, Tensor):
        check_constant(guidance_scale=guidance_scale)
        came: float | str = "a tensor"
    else:
        came = real("guidance_scale", guidance_scale, _NUMBER_OR_TENSOR)
    if uncond is None and came != 1:
        raise ValueError(f"guidance_scale: expected 1 where {uncond_name} is not given, got {came}")


def check_teacher(
    logits: Any, codebook: Any, uncond_logits: Any, guidance_scale: Any, top_k: Any, top_p: Any
) -> tuple[int, float]:
    """:func:`check_logits`, and their codebook ``[V, C]``; returns the filters."""
    filters = check_logits(logits, uncond_logits, guidance_scale, top_k, top_p)
    check_codebook(codebook, logits.shape[-1], "logits", logits)
    return filters


def check_codebook(codebook: Any, vocabulary: int, like_name: str, like: Tensor) -> None:
    check_tensor("codebook", codebook)
    if codebook.ndim != 2 or codebook.shape[0] != vocabulary or codebook.shape[1] < 1:
        raise ValueError(
            f"codebook: expected shape [V, C] with V = {vocabulary} (from {like_name}) and C >= 1, "
            f"got {list(codebook.shape)}"
        )
    check_same_device(like_name, like, codebook=codebook)
    check_constant(codebook=codebook)


def check_temperature(temperature: Any) -> float:
    temperature = real("temperature", temperature)
    if not 1e-30 <= temperature <= 1e30:
        raise ValueError(f"temperature: expected a number in [1e-30, 1e30], got {temperature}")
    return float(temperature)


def seed_tensor(seed: Any, like: Tensor) -> Tensor:
    """``seed`` as an int64 tensor, ``[]`` or ``[*]``, on the device of ``like [*, V]``, or an
    error."""
    if isinstance(seed, Tensor):
        check_tensor("seed", seed, (torch.int64,))
        if seed.ndim:
            check_shape("seed", seed, list(like.shape[:-1]), "[*], that of logits without V, or []")
        check_same_device("logits", like, seed=seed)
        return seed
    seed = integer("seed", seed, "an int or a torch.Tensor")
    return torch.full((), seed, dtype=torch.int64, device=like.device)


def check_tokens(
    name: str, tokens: Any, like: Tensor, codebook: Tensor, like_name: str = "logits"
) -> list[int]:
    """Checks tokens ``[*, C]`` or ``[*, M, C]`` for ``like [*, any]``; returns their shape without
    C."""
    check_tensor(name, tokens)
    rows, dim = list(like.shape[:-1]), codebook.shape[1]
    lead = list(tokens.shape[:-1])
    drawn = tokens.ndim == like.ndim + 1
    if tokens.ndim == 0 or tokens.shape[-1] != dim or lead[: -1 if drawn else None] != rows:
        raise ValueError(
            f"{name}: expected shape {[*rows, dim]} ([*, C]) or {[*rows, 'M', dim]} ([*, M, C]) "
            f"for {like_name} {list(like.shape)} and codebook {list(codebook.shape)}, "
            f"got {list(tokens.shape)}"
        )
    check_same_device(like_name, like, **{name: tokens})
    return lead


def check_noise_level(t: Any) -> None:
    """A number must lie in (0, 1]; a tensor's values are not read, which would stall a GPU."""
    if isinstance(t, Tensor):
        check_constant(t=t)
    elif not 0 < real("t", t, _NUMBER_OR_TENSOR) <= 1:
        raise ValueError(f"t: expected a noise level in (0, 1], got {t}")


def broadcast_rows(
    name: str,
    value: Tensor | float,
    shape: Sequence[int],
    like: Tensor,
    dtype: torch.dtype,
    like_name: str = "logits",
) -> Tensor:
    """``value`` as a tensor of ``shape`` on the device of ``like``, or an error that names it."""
    if isinstance(value, Tensor):
        check_tensor(name, value)
        if value.ndim == 0 and not value.is_meta:
            value = value.to(like.device)
        check_same_device(like_name, like, **{name: value})
    else:
        value = check_range(name, check_number(name, value, _NUMBER_OR_TENSOR), dtype)
        value = torch.full((), value, device=like.device, dtype=dtype)
    try:
        return value.to(dtype).expand(tuple(shape))
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a number or a shape that broadcasts to {list(shape)}, "
            f"got {list(value.shape)}"
        ) from None
