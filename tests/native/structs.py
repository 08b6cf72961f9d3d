"""Kernel arguments as ctypes: the structs of ``csrc/include/dd2/*.h``."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest
import torch
from native.build import NATIVE_DIR, build_shared, compiler_command
from torch import Tensor

LOGIT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


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


def teacher_rows(
    logits: Tensor, uncond: Tensor | None, scale: Tensor, top_k: int, top_p: float
) -> TeacherRows:
    """Points into the tensors, which the caller keeps alive; ``scale [rows]`` is float32."""
    return TeacherRows(
        logits=logits.data_ptr(),
        uncond=0 if uncond is None else uncond.data_ptr(),
        scale=scale.data_ptr(),
        logits_stride=logits.stride(0),
        uncond_stride=0 if uncond is None else uncond.stride(0),
        rows=logits.shape[0],
        vocabulary=logits.shape[1],
        top_k=top_k,
        top_p=top_p,
        logit_type=LOGIT_TYPES[logits.dtype],
    )


def build_shim(stem: str, folder: Path) -> ctypes.CDLL:
    """The shim ``<stem>_shim.cpp`` as a library, its function ``<stem>`` returning the error."""
    if shutil.which(compiler_command()[0]) is None:
        pytest.skip(f"no C++ compiler {compiler_command()[0]!r}")
    library = ctypes.CDLL(str(build_shared([NATIVE_DIR / f"{stem}_shim.cpp"], folder)))
    getattr(library, stem).restype = ctypes.c_char_p
    return library
