"""Whether a network's tensors are those that something kept beside it was made of.

Torch counts each change in place, but not the steps of fused optimizers, which are counted here,
nor what goes through ``.data`` or memory shared with NumPy: it is seen by where each tensor lies
and, on CPUs, what its first number is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from itertools import chain
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn.modules import module as every_module
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from ..ops import extension, structs

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_EVERY_HOOK = [getattr(every_module, f"_global{name}") for name in _HOOKS]
_PLAIN = (Tensor, nn.Parameter)
_version, _value, _address = attrgetter("_version"), attrgetter("value"), Tensor.data_ptr


class _Seen(ctypes.Structure):
    """``Seen`` of ``csrc/bindings.cpp``."""

    _fields_ = structs.fields("address version size number", ctypes.c_uint64)


def _count_fused_step(optimizer: Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        if group.get("fused"):
            increment_version(group["params"])


register_optimizer_step_post_hook(_count_fused_step)


class Watch:
    """The tensors of a network and of its parts, as they are now; the network itself is not held.

    Attributes:
        tensors: of the network and of all modules inside its parts.
        plain: whether these modules compute what their classes say, of ordinary tensors.

    Raises RuntimeError for tensors of inference mode, which have no version.
    """

    def __init__(self, network: nn.Module, parts: Iterable[nn.Module]) -> None:
        modules = [network, *(module for part in parts for module in part.modules())]
        of_kinds = [m.__dict__[k] for m in modules for k in ("_parameters", "_buffers", "_modules")]
        self._dicts = tuple(kept for kept in of_kinds if kept)
        self._places = [kept.values() for kept in self._dicts]
        self._held = tuple(chain.from_iterable(self._places))
        self.tensors = [held for held in self._held if isinstance(held, Tensor)]
        self._lie = self._addresses()
        kinds = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}
        self._sizes = [
            min(8, tensor.element_size())
            if tensor.device.type == "cpu" and tensor.numel() and address and type(tensor) in _PLAIN
            else 0
            for tensor, address in zip(self.tensors, self._lie, strict=True)
        ]
        self._numbers = [
            kinds[size].from_address(address)
            for size, address in zip(self._sizes, self._lie, strict=True)
            if size
        ]
        self._unchanged = getattr(extension.load()[0], "unchanged", None)
        self.renew()
        self._hooks = [m.__dict__[name] for m in modules for name in _HOOKS]
        self.plain = all(type(t) in _PLAIN for t in self.tensors) and not any(
            "forward" in m.__dict__ or hasattr(m, "parametrizations") for m in modules
        )

    def _addresses(self) -> list[int]:
        return list(map(_address, self.tensors))

    def _now(self) -> list[int]:
        return [*map(_version, self.tensors), *map(_value, self._numbers)]

    def whole(self) -> bool:
        """Whether the network has the parts and tensors that it had."""
        held = [*chain.from_iterable(self._places)]
        return len(held) == len(self._held) and all(map(is_, held, self._held))

    def in_place(self) -> bool:
        """Whether these lie where they did, too."""
        return self.whole() and self._addresses() == self._lie

    def current(self) -> bool:
        """Whether they are as they were, too."""
        if self._unchanged is not None:  # in half the time
            as_they_were: bool = self._unchanged(
                self._dicts, self._held, self._as_tuple, self._seen
            )
            return as_they_were
        return self.in_place() and self._now() == self._state

    def renew(self) -> None:
        """Take the tensors, which lie where they did, as they are now."""
        self._state = self._now()
        self._as_tuple = tuple(self.tensors)
        numbers = iter(self._state[len(self.tensors) :])
        versions = self._state[: len(self.tensors)]
        parts = [
            _Seen(address, version, size, next(numbers) if size else 0)
            for address, version, size in zip(self._lie, versions, self._sizes, strict=True)
        ]
        self._seen = b"".join(map(bytes, parts))

    def hooked(self) -> bool:
        """Whether a hook waits for a module."""
        return any(self._hooks) or any(_EVERY_HOOK)


def same_layers(parts: Iterable[nn.Module], fresh: Iterable[nn.Module]) -> bool:
    """Whether parts are built as fresh ones: the same layers with the same settings."""

    def told(part: nn.Module) -> list[Any]:
        return [(name, type(m), m.extra_repr()) for name, m in part.named_modules()]

    return list(map(told, parts)) == list(map(told, fresh))
