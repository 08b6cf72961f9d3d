"""Results that do not depend on the state that torch happens to be in where they are asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch

Method = TypeVar("Method", bound=Callable[..., Any])


def outside_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Where the caller's autocast does not cast: networks compute in the dtype of their weights."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def own_precision(method: Method) -> Method:
    """A method of a tensor that computes outside the caller's autocast."""

    @functools.wraps(method)
    def run(self: Any, first: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(first, torch.Tensor):
            return method(self, first, *args, **kwargs)
        with outside_autocast(first.device):
            return method(self, first, *args, **kwargs)

    return run  # type: ignore[return-value]


def constant(method: Method) -> Method:
    """A method of a tensor whose result is data: neither autocast nor gradients have a part in it,
    and under inference mode, too, it is an ordinary tensor, which may be changed or trained on."""

    @own_precision
    @functools.wraps(method)
    def run(self: Any, first: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return method(self, first, *args, **kwargs)

    return run  # type: ignore[return-value]
