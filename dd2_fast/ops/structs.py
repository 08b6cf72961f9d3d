"""Kernel arguments as plain C data, for the extension's kernels and NVRTC's: structs of
``csrc/include/dd2/*.h`` in ctypes. An operator's own is in its ``native.py``, and its layout is
checked when the extension is loaded."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def fields(names: str, kind: type) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class TeacherRows(ctypes.Structure):
    """``dd2::TeacherRows``."""

    _fields_ = [
        *fields("logits uncond scale", ctypes.c_void_p),
        *fields("logits_stride uncond_stride rows vocabulary top_k", ctypes.c_longlong),
        ("top_p", ctypes.c_float),
        ("logit_type", ctypes.c_int),
    ]

    def filtered(self) -> bool:
        return 0 < self.top_k < self.vocabulary or self.top_p < 1

    def staged_floats(self) -> int:
        """What a row takes in shared memory: whole fours."""
        return -(-self.vocabulary // 4) * 4


def layout_of(struct: type[ctypes.Structure]) -> tuple[int, tuple[tuple[int, int], ...]]:
    """The size, and (offset, size) of every field, those of structs and arrays inside it one by
    one."""
    return ctypes.sizeof(struct), tuple(_places(struct, 0))


def _places(struct: type[ctypes.Structure], start: int) -> Iterator[tuple[int, int]]:
    kinds: Iterable[tuple[str, Any]] = struct._fields_  # type: ignore[assignment]
    for name, kind in kinds:
        place = getattr(struct, name)
        if issubclass(kind, ctypes.Structure):
            yield from _places(kind, start + place.offset)
        elif issubclass(kind, ctypes.Array):
            size = ctypes.sizeof(kind._type_)
            yield from ((start + place.offset + i * size, size) for i in range(kind._length_))
        else:
            yield start + place.offset, place.size


def params_of(op: str) -> type[ctypes.Structure]:
    """The arguments of the compiled kernels of ``op``: ``FlowSolveParams`` of ``flow_solve``.

    Raises:
        AttributeError, ImportError: there are none.
    """
    name = "".join(word.capitalize() for word in op.split("_")) + "Params"
    return getattr(importlib.import_module(f"dd2_fast.ops.{op}.native"), name)


def differing(layouts: Mapping[str, Any]) -> str | None:
    """The first operator of whose arguments the extension has another layout, or none."""
    for op, layout in layouts.items():
        try:
            if layout_of(params_of(op)) != layout:
                return op
        except (AttributeError, ImportError):
            return op
    return None
