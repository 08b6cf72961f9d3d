"""Argument checks that any operator needs: each error names the argument, what was expected and
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


def compute_dtype(*values: Any) -> torch.dtype:
    """float64 where a tensor has it, else float32."""
    doubles = (isinstance(v, Tensor) and v.dtype == torch.float64 for v in values)
    return torch.float64 if any(doubles) else torch.float32
