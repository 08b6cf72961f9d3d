"""Counts the kernels that eager code would launch on a GPU, on tensors of the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Nothing runs for them; views are told by their schema.
_FREE = {"empty", "empty_strided", "empty_like", "new_empty", "detach", "alias", "_unsafe_view"}
_FREE |= {"promote_types"}
# What a compiler leaves as calls of a library.
_LIBRARY = {
    "dd2_fast::group_norm_silu",
    "addmm",
    "mm",
    "bmm",
    "_addmm_activation",
    "convolution",
    "cumsum",
}
# One kernel on CUDA and several operations on meta; RMSNorm's reads a contiguous input.
_ONE: set[Callable[..., Any]] = {F.scaled_dot_product_attention, F.rms_norm}


class Launches:
    """The kernels by the names of their operators, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    @property
    def total(self) -> int:
        """How many there are."""
        return len(self.names)

    @property
    def fused(self) -> int:
        """How many are left if all between two calls of a library is one kernel."""
        calls = [name in _LIBRARY or "attention" in name for name in self.names]
        runs = sum(not now and before for before, now in zip([True, *calls], calls, strict=False))
        return sum(calls) + runs


class _Operations(TorchDispatchMode):
    def __init__(self, launched: Launches) -> None:
        super().__init__()
        self.launched = launched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and name not in _FREE:
            self.launched.names.append(name)
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, launched: Launches) -> None:
        super().__init__()
        self.launched = launched

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _ONE:
            return func(*args, **(kwargs or {}))
        self.launched.names.append(func.__name__)
        x: Tensor = args[0]
        if func is F.rms_norm:
            self.launched.names += [] if x.is_contiguous() else ["contiguous"]
            return x.new_empty(x.shape)
        # The kernels write tokens before heads.
        batch, heads, tokens, size = x.shape
        return x.new_empty(batch, tokens, heads, size).transpose(1, 2)


@contextmanager
def launches() -> Iterator[Launches]:
    """The kernels of the code inside."""
    launched = Launches()
    with _Functions(launched), _Operations(launched):
        yield launched
