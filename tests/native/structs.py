"""Kernels and launchers of ``csrc`` on the CPU, with their arguments."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest
import torch
from native.build import NATIVE_DIR, build_shared, compiler_command
from torch import Tensor

from dd2_fast.ops.launch import THREADS, Way
from dd2_fast.ops.structs import TeacherRows, fields

__all__ = [
    "Launched", "Shim", "TeacherRows", "build_shim", "fields", "teacher_rows", "unaligned",
]  # fmt: skip

LOGIT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


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


def unaligned(tensor: Tensor) -> Tensor:
    """The same values where no 16-byte load may begin."""
    return torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view_as(tensor).copy_(tensor)


class Launched(ctypes.Structure):
    """What a launcher of ``csrc/cuda`` asked of the CUDA runtime; as in ``named_kernels.h``."""

    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_size_t),
        ("stream", ctypes.c_size_t),
    ]


class Shim:
    """The kernels of one operator by name, run on the CPU, and its launcher, recorded."""

    def __init__(self, stem: str, folder: Path) -> None:
        self.library = build_shim(stem, folder)
        self._run = getattr(self.library, stem)
        self._run.argtypes = [
            ctypes.c_char_p, ctypes.c_void_p, *[ctypes.c_uint] * 3, ctypes.c_size_t, ctypes.c_bool,
        ]  # fmt: skip
        self._record = getattr(self.library, f"{stem}_launch")
        self._record.argtypes = [
            ctypes.c_void_p, *[ctypes.c_size_t] * 3, ctypes.c_int, ctypes.POINTER(Launched),
        ]  # fmt: skip
        self._record.restype = ctypes.c_char_p

    def run(self, way: Way, params: ctypes.Structure, *, reverse_order: bool = False) -> None:
        """Runs a kernel as ``way`` says."""
        self.run_at(way.kernel, ctypes.addressof(params), way.grid, THREADS, way.shared,
                    reverse_order)  # fmt: skip

    def run_at(
        self, kernel: str, params: int, grid: tuple[int, int], threads: int, shared: int,
        reverse_order: bool = False,
    ) -> None:  # fmt: skip
        """Runs a kernel with the arguments at the address ``params``."""
        error = self._run(kernel.encode(), params, *grid, threads, shared, reverse_order)
        assert error is None, error.decode()

    def launched(
        self, params: ctypes.Structure, *, stream: int, shared_limit: int, static_shared: int,
        processors: int = 1,
    ) -> Launched:  # fmt: skip
        """What the launcher asks for on a device with ``shared_limit`` bytes a block."""
        record = Launched()
        error = self._record(
            ctypes.addressof(params), stream, shared_limit, static_shared, processors,
            ctypes.byref(record),
        )  # fmt: skip
        assert error is None, error.decode()
        return record
