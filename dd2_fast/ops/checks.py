"""Argument checks of the public operators: each error names the argument, what was expected and
what came."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_NUMBER_OR_TENSOR = "a number or a torch.Tensor"


def type_name(value: Any) -> str:
    """``int``, ``numpy.ndarray``: what came, in an error."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def check_tensor(name: str, value: Any, dtypes: Sequence[torch.dtype] = FLOAT_DTYPES) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type_name(value)}")
    if value.is_nested or value.layout is not torch.strided:
        got = "a nested tensor" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise TypeError(f"{name}: expected a dense tensor, got {got}")
    if value.dtype not in dtypes:
        wanted = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        got = str(value.dtype).removeprefix("torch.")
        raise TypeError(f"{name}: expected dtype {wanted}, got {got}")
    check_memory(**{name: value})


def check_memory(**tensors: Tensor | None) -> None:
    """An error for a tensor whose values are not in this process' memory: one whose storage has
    been released, as FSDP leaves parameters between their uses, or a part of a DTensor."""
    if torch.compiler.is_compiling():
        return
    for name, value in tensors.items():
        if value is None:
            continue
        if type(value).__name__ == "DTensor":
            raise TypeError(
                f"{name}: expected a plain tensor, got a DTensor: pass {name}.full_tensor(), or "
                f"{name}.to_local() of every rank's own rows"
            )
        while torch._C._functorch.is_functorch_wrapped_tensor(value):
            value = torch._C._functorch.get_unwrapped(value)
        held = value.untyped_storage().nbytes()
        if held < _bytes_reached(value):
            raise ValueError(
                f"{name}: expected a tensor with its values, got one whose storage has been "
                f"released ({held} bytes are left)"
            )


def _bytes_reached(value: Tensor) -> int | torch.SymInt:
    """How far into its storage a tensor's last element ends."""
    if value.numel() == 0:
        return 0
    last = sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
    return (value.storage_offset() + last + 1) * value.element_size()


def check_shape(name: str, value: Tensor, expected: Sequence[int], meaning: str) -> None:
    if tuple(value.shape) != tuple(expected):
        raise ValueError(
            f"{name}: expected shape {list(expected)} ({meaning}), got {list(value.shape)}"
        )


def check_same_device(like_name: str, like: Tensor, **tensors: Tensor | None) -> None:
    for name, value in tensors.items():
        if value is not None and value.device != like.device:
            raise ValueError(
                f"{name}: expected device {like.device} (that of {like_name}), got {value.device}"
            )


def check_constant(**tensors: Tensor | None) -> None:
    for name, value in tensors.items():
        if value is not None and value.requires_grad:
            raise ValueError(
                f"{name}: expected a constant (requires_grad=False); the operator has no gradient "
                f"in {name}, pass {name}.detach()"
            )


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def _is_finite(value: float) -> bool:
    """``math.isfinite``, which torch.compile cannot trace for a number it has made symbolic."""
    return abs(value) < math.inf


def real(name: str, value: Any, expected: str = "a number") -> float:
    """``value``, a real number of Python or NumPy but no bool, as Python's, or an error."""
    if type(value) is float or type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected {expected}, got {type_name(value)}")
    return float(value)


def integer(name: str, value: Any, expected: str = "an int") -> int:
    """``value``, a number with ``__index__`` but no bool or tensor, as an int, or an error."""
    if type(value) is not int:
        if isinstance(value, bool | Tensor) or not hasattr(value, "__index__"):
            raise TypeError(f"{name}: expected {expected}, got {type_name(value)}")
        try:
            value = operator.index(value)
        except TypeError:  # an array of several numbers, or of floats
            raise TypeError(f"{name}: expected {expected}, got {type_name(value)}") from None
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}: expected an integer of 64 bits, got {value}")
    return value


def check_number(name: str, value: Any, expected: str = "a number") -> float:
    value = real(name, value, expected)
    if not _is_finite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return value


def check_range(name: str, value: float, dtype: torch.dtype) -> float:
    """``value``, which ``dtype`` can hold, or an error."""
    if abs(value) > torch.finfo(dtype).max:
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(f"{name}: expected a number within {kind}, got {value}")
    return float(value)


def check_count(name: str, value: Any) -> int:
    value = integer(name, value)
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return value


def check_backend(backend: Any) -> str:
    """The name, "" for None; the registry knows which names there are."""
    if backend is None:
        return ""
    if not isinstance(backend, str):
        raise TypeError(f"backend: expected a name or None, got {type_name(backend)}")
    return backend


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
    logits: Any, uncond_logits: Any, guidance_scale: Any, top_k: Any, top_p: Any
) -> tuple[int, float]:
    """The arguments that every operator over a teacher's logits ``[*, V]`` shares; returns the
    filters."""
    check_tensor("logits", logits)
    filters = check_filters(top_k, top_p)
    if logits.ndim < 1 or logits.shape[-1] < 1:
        raise ValueError(f"logits: expected shape [*, V] with V >= 1, got {list(logits.shape)}")
    if uncond_logits is not None:
        check_tensor("uncond_logits", uncond_logits, (logits.dtype,))
        check_shape("uncond_logits", uncond_logits, logits.shape, "that of logits")
    check_same_device("logits", logits, uncond_logits=uncond_logits)
    check_constant(logits=logits, uncond_logits=uncond_logits)
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
    """``seed`` as an int64 tensor ``[]`` on the device of ``like``, or an error."""
    if isinstance(seed, Tensor):
        check_tensor("seed", seed, (torch.int64,))
        check_shape("seed", seed, (), "one number")
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


def compute_dtype(*values: Any) -> torch.dtype:
    """float64 where a tensor has it, else float32."""
    doubles = (isinstance(v, Tensor) and v.dtype == torch.float64 for v in values)
    return torch.float64 if any(doubles) else torch.float32


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
