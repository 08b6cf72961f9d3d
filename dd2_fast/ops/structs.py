"""Kernel arguments as plain C data: the structs of ``csrc/include/dd2/*.h`` in ctypes, for the
extension's kernels and NVRTC's. A struct's layout is checked when the extension is loaded."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

LOGIT_TYPES = ("kFloat32", "kBFloat16", "kFloat16")  # dd2::LogitType, in order


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


class CsdLossParams(ctypes.Structure):
    """``dd2::CsdLossParams``."""

    _fields_ = [
        *fields("x fake weight loss grad_x grad_fake grad_x_t", ctypes.c_void_p),
        ("alpha", ctypes.c_float),
        ("dmd", ctypes.c_bool),
        ("weight_power", ctypes.c_float),
    ]


class ConditionalScoreParams(ctypes.Structure):
    """``dd2::ConditionalScoreParams``."""

    _fields_ = [
        ("teacher", TeacherRows),
        *fields("out jacobian x_t t direction codebook", ctypes.c_void_p),
        *fields("draws dim", ctypes.c_longlong),
        ("csd", CsdLossParams),
        ("workspace", ctypes.c_void_p),
    ]


class FlowSolveParams(ctypes.Structure):
    """``dd2::FlowSolveParams``."""

    _fields_ = [
        ("teacher", TeacherRows),
        *fields("out noise codebook", ctypes.c_void_p),
        *fields("draws dim steps", ctypes.c_longlong),
        ("heun", ctypes.c_bool),
    ]


class ImageNormalParams(ctypes.Structure):
    """``dd2::ImageNormalParams``."""

    _fields_ = [
        *fields("out indices seeds", ctypes.c_void_p),
        *fields("seed images count", ctypes.c_longlong),
        ("stream", ctypes.c_uint),
    ]


class NearestCodeParams(ctypes.Structure):
    """``dd2::NearestCodeParams``."""

    _fields_ = [
        *fields("out x codebook", ctypes.c_void_p),
        *fields("rows vocabulary dim", ctypes.c_longlong),
    ]


class SampleCodeParams(ctypes.Structure):
    """``dd2::SampleCodeParams``."""

    _fields_ = [
        ("teacher", TeacherRows),
        *fields("out seed index", ctypes.c_void_p),
        ("inverse_temperature", ctypes.c_float),
    ]


def layout_of(struct: type[ctypes.Structure]) -> tuple[int, tuple[tuple[int, int], ...]]:
    """The size, and (offset, size) of every field, those of structs inside it one by one."""
    return ctypes.sizeof(struct), tuple(_places(struct, 0))


def _places(struct: type[ctypes.Structure], start: int) -> Iterator[tuple[int, int]]:
    kinds: Iterable[tuple[str, Any]] = struct._fields_  # type: ignore[assignment]
    for name, kind in kinds:
        place = getattr(struct, name)
        if issubclass(kind, ctypes.Structure):
            yield from _places(kind, start + place.offset)
        else:
            yield start + place.offset, place.size


def differing(layouts: Mapping[str, Any]) -> str | None:
    """The first struct of which the extension has another layout, or none."""
    own = {name: globals().get(name) for name in layouts}
    return next((n for n, s in own.items() if s is None or layout_of(s) != layouts[n]), None)
