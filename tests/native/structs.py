"""Kernels and launchers of ``csrc`` on the CPU, and their arguments."""

from __future__ import annotations

import ctypes
import shutil

import pytest
import torch
from native.build import build_operator, compiler_command
from torch import Tensor

from dd2_fast.ops.native import LOGIT_TYPES
from dd2_fast.ops.structs import TeacherRows


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


def unaligned(tensor: Tensor) -> Tensor:
    """The same values where no 16-byte load may begin."""
    return torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view_as(tensor).copy_(tensor)


class Shim:
    """The launcher of one operator, its kernels run on the CPU."""

    def __init__(self, op: str) -> None:
        if shutil.which(compiler_command()[0]) is None:
            pytest.skip(f"no C++ compiler {compiler_command()[0]!r}")
        self._launch = ctypes.CDLL(str(build_operator(op))).launch
        self._launch.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_bool]
        self._launch.restype = ctypes.c_char_p

    def run(
        self, params: ctypes.Structure, *, staged: bool = True, processors: int = 1,
        reverse_order: bool = False,
    ) -> None:  # fmt: skip
        """Launches on a device with shared memory for rows, or without; blocks and threads of a
        block run in their order or in the reverse one."""
        shared_limit = 232_448 if staged else 0
        address = ctypes.addressof(params)
        error = self._launch(address, shared_limit, processors, reverse_order)
        assert error is None, error.decode()
