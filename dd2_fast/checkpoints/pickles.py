"""What a checkpoint's pickle would make, found by reading its opcodes and making none of it.

``torch.load(weights_only=True)`` calls nothing dangerous, yet it makes what it is told to: views of
10^12 values, keys that are tuples in two million tuples (their hash recurses in C, without a limit,
and ends the process), or tuples in pairs, forty levels deep. So the stack machine runs here first,
with stand-ins for the objects. It knows the opcodes of torch's own unpickler and refuses others.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Sequence
from typing import Any, BinaryIO

import torch

from .limits import Budget

_DEEPEST = 256
# What a file spends on an opcode (an empty dictionary, its places on the stack and in the memo),
# on a part of what is copied or hashed, and on each number that a constructor is asked for.
_OPCODE_BYTES, _PART_BYTES, _NUMBER_BYTES = 200, 128, 8
_ITEM_BYTES = {
    **dict.fromkeys(("ByteStorage", "CharStorage", "BoolStorage", "UntypedStorage"), 1),
    **dict.fromkeys(("QInt8Storage", "QUInt8Storage", "QUInt4x2Storage", "QUInt2x4Storage"), 1),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}
_TENSORS = re.compile(r"^torch\._(utils|tensor)\.|(Tensor|Parameter)$")
_LEAVES = {"NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT"}
_VALUES = {"BINUNICODE", "SHORT_BINSTRING", "BININT", "BININT1", "BININT2", "LONG1"}
_EMPTY = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Node:
    """A container, or what a call made: its depth, and in how many parts a copy or hash looks."""

    __slots__ = ("name", "depth", "parts", "items", "used")

    def __init__(
        self, name: str, depth: int = 1, parts: int = 1, items: Sequence[Any] | None = None
    ) -> None:
        self.name, self.depth, self.parts, self.items, self.used = name, depth, parts, items, False


class _Global:
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _Storage:
    __slots__ = ("bytes", "item")

    def __init__(self, size: int, item: int) -> None:
        self.bytes, self.item = size, item


class PickleScan:
    """One pickle, read from ``stream`` up to its end.

    Attributes:
        storages: bytes of each storage that it refers to, by key.
        top: the object, where it is a plain value; else a stand-in.

    Raises:
        ValueError: beyond the budget; or deeper than 256, cut short, or with opcodes or arguments
            that torch.save does not write, in which case the message does not name the file.
    """

    def __init__(self, stream: BinaryIO, budget: Budget) -> None:
        self.budget = budget
        self.storages: dict[str, int] = {}
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._grown = 0
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                budget.spend(_OPCODE_BYTES)
                self._step(opcode.name, argument)
            self.top = self._stack.pop()
        except (IndexError, KeyError) as error:
            raise ValueError("its pickle takes what is not there") from error

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in _VALUES:
            stack.append(argument)
        elif name in _LEAVES:
            stack.append(None)
        elif name in _TUPLES:
            count = _TUPLES[name]
            items = self._last(count)
            stack[len(stack) - count :] = [self._tuple(items)]
        elif name == "MARK":
            self._marked.append(stack)
            self._stack = []
        elif name == "TUPLE":
            items = self._to_mark()
            self._stack.append(self._tuple(items))
        elif name in _EMPTY:
            stack.append(_Node(name))
        elif name == "GLOBAL":
            stack.append(_Global(argument.replace(" ", ".")))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            stack[-1] = self._call(stack[-1], arguments)
        elif name in ("APPEND", "BUILD"):
            item = stack.pop()
            if name == "BUILD":
                self._check_state(stack[-1], item)
            self._put([item])
        elif name == "SETITEM":
            self._put([stack.pop(), stack.pop()])
        elif name in ("APPENDS", "SETITEMS"):
            self._put(self._to_mark())
        elif name == "PROTO":
            if argument not in (2, 3):
                raise ValueError(f"its pickle has protocol {argument}, and torch reads 2")
        elif name != "STOP":
            raise ValueError(f"its pickle has the opcode {name}, which torch does not read")

    def _last(self, count: int) -> list[Any]:
        items = self._stack[len(self._stack) - count :] if count else []
        if len(items) < count:
            raise IndexError
        return items

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _tuple(self, items: Sequence[Any]) -> _Node:
        depth, parts = self._use(items)
        return _Node("tuple", depth, parts, tuple(items))

    def _use(self, items: Sequence[Any]) -> tuple[int, int]:
        """Depth and parts of what holds ``items``; it costs what copying or hashing it does."""
        depth, parts = 0, len(items) + 1
        for item in items:
            if isinstance(item, _Node):
                depth, parts, item.used = max(depth, item.depth), parts + item.parts, True
            elif isinstance(item, str):
                parts += len(item) // 32
        if depth + 1 + self._grown > _DEEPEST:
            raise ValueError(f"its pickle is nested more than {_DEEPEST} levels deep")
        self.budget.spend(parts * _PART_BYTES)
        return depth + 1, parts

    def _put(self, items: Sequence[Any]) -> None:
        """Put ``items`` into the last object."""
        target = self._stack[-1]
        depth = self._use(items)[0]
        if not isinstance(target, _Node):
            raise ValueError("its pickle puts something into what is no container")
        target.parts += len(items)
        if depth > target.depth:
            # What holds it already has become deeper by as much, at most.
            self._grown += (depth - target.depth) if target.used else 0
            target.depth = depth
        if target.depth + self._grown > _DEEPEST:
            raise ValueError(f"its pickle is nested more than {_DEEPEST} levels deep")

    def _storage(self, identity: Any) -> Any:
        items = identity.items if isinstance(identity, _Node) else None
        if not items or not isinstance(items[0], str):
            raise ValueError("its pickle refers to what is no storage")
        if items[0] != "storage":
            return None  # whatever it is, torch refuses it
        if len(items) < 5 or not isinstance(items[1], _Global) or not isinstance(items[2], str):
            raise ValueError("its pickle has a storage without type, key or size")
        item, count = _ITEM_BYTES.get(items[1].name.rpartition(".")[2]), items[4]
        if item is None or not _is_size(count):
            raise ValueError(f"its pickle has a storage of {count!r} values of unknown type")
        self.storages[items[2]] = max(self.storages.get(items[2], 0), count * item)
        return _Storage(count * item, item)

    def _call(self, function: Any, arguments: Any) -> _Node:
        if not isinstance(arguments, _Node) or arguments.items is None:
            raise ValueError("its pickle calls something with arguments that are no tuple")
        name = function.name if isinstance(function, _Global) else ""
        if name == "torch.Size" and len(arguments.items) == 1:
            return arguments.items[0] if isinstance(arguments.items[0], _Node) else _Node(name)
        self._check_tensor(arguments)
        depth, parts = self._use([arguments])
        return _Node(name, depth, parts)

    def _check_state(self, target: Any, state: Any) -> None:
        """A tensor takes its state as arguments, for which torch would take any iterable."""
        is_tensor = isinstance(target, _Node) and _TENSORS.search(target.name)
        if is_tensor and (not isinstance(state, _Node) or state.items is None):
            raise ValueError("its pickle gives a tensor a state that is no tuple")
        self._check_tensor(state)

    def _check_tensor(self, arguments: Any) -> None:
        """Spend what a tensor of these arguments is, ``(storage, offset, shape, strides, ...)``.

        Other integers among arguments, or their product, may be a size as well.
        """
        items = arguments.items if isinstance(arguments, _Node) else None
        if items is None:
            return
        if len(items) >= 4 and isinstance(items[0], _Storage):
            self._spend_view(items[0], *items[1:4], *items[6:7])
            return
        if items and all(map(_is_size, items)):
            self.budget.spend(_NUMBER_BYTES * max(math.prod(items), *items, 0))
            return
        for item in items:
            if _is_size(item):
                self.budget.spend(_NUMBER_BYTES * item)
            else:
                self._check_tensor(item)

    def _spend_view(
        self, storage: _Storage, offset: Any, shape: Any, strides: Any, dtype: Any = None
    ) -> None:
        sizes, steps = (getattr(value, "items", None) for value in (shape, strides))
        if sizes is None or steps is None or len(sizes) != len(steps):
            raise ValueError("its pickle has a tensor without shape or strides")
        if not all(map(_is_size, (offset, *sizes, *steps))):
            raise ValueError("its pickle has a tensor whose sizes are no integers from 0 on")
        item = storage.item
        if isinstance(dtype, _Global):  # of values in an untyped storage
            found = getattr(torch, dtype.name.removeprefix("torch."), None)
            item = found.itemsize if isinstance(found, torch.dtype) else item
        count = math.prod(sizes)
        last = sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
        if count and (offset + last + 1) * item > storage.bytes:
            raise ValueError("a tensor reaches beyond the values that are stored for it")
        self.budget.spend(count * item)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
