"""The derivatives that an operator does not have are errors: torch.library would drop tangents,
and gradients of gradients, without a word."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch.autograd import forward_ad


def check_reverse_mode(operator: str, *values: Any) -> None:
    """An error where a tensor of ``values`` has a tangent, or may have one: inside torch.func.jvp,
    of whose nested levels torch shows the innermost alone. One comparison outside forward mode."""
    if forward_ad._current_level < 0:
        return
    if torch._C._are_functorch_transforms_active() or any(map(_has_tangent, values)):
        _refuse(operator, "torch.func.jvp and torch.autograd.forward_ad cannot pass through it")


def check_no_tangent(operator: str, *values: Any) -> None:
    """The same for an operator without a derivative."""
    if forward_ad._current_level < 0:
        return
    if torch._C._are_functorch_transforms_active() or any(map(_has_tangent, values)):
        raise RuntimeError(
            f"{operator}: has no derivative; torch.func.jvp and torch.autograd.forward_ad cannot "
            "pass through it"
        )


def kept(tensors: Iterable[torch.Tensor | None]) -> list[torch.Tensor]:
    """Those that are there, as autograd can save them: tensors that inference mode made, such as a
    teacher's logits, are copied."""
    return [t.clone() if t.is_inference() else t for t in tensors if t is not None]


def refuse_graph(operator: str) -> NoReturn:
    """For a backward pass under create_graph=True, whose gradients no formula differentiates."""
    _refuse(operator, "create_graph=True asks for its second derivative")


def _has_tangent(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None


def _refuse(operator: str, why: str) -> NoReturn:
    raise RuntimeError(f"{operator}: differentiable once, in reverse mode; {why}")
