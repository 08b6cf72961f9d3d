"""Tensors as arguments of the compiled kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import extension, structs

Launch = Callable[[ctypes.Structure], None]  # runs a kernel with these arguments

LOGIT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # dd2::LogitType


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def cpu_launcher(op: str) -> Launch:
    """The C++ kernel of ``op`` on torch's number of threads."""
    kernel = getattr(extension.native(), f"cpu_{op}")
    return lambda params: kernel(ctypes.addressof(params), torch.get_num_threads())


def cuda_launcher(op: str, device: torch.device) -> Launch:
    """The CUDA kernels of ``op`` on the current stream of ``device``."""
    module = extension.native()
    kernel, wanted = getattr(module, f"cuda_{op}"), getattr(module, f"cuda_workspace_{op}")

    def launch(params: ctypes.Structure) -> None:
        address = ctypes.addressof(params)
        with torch.cuda.device(device):
            size = wanted(address) if hasattr(params, "workspace") else 0
            workspace = give_workspace(params, size, device)
            kernel(address, torch.cuda.current_stream().cuda_stream)
            del workspace  # what comes next on the stream may have it

    return launch


def give_workspace(params: Any, size: int, device: torch.device) -> Tensor | None:
    """``size`` bytes that ``params.workspace`` points to, for the caller to keep; None for none."""
    if not size:
        return None
    workspace = torch.empty(size, dtype=torch.uint8, device=device)
    params.workspace = workspace.data_ptr()
    return workspace


class TeacherRows:
    """:class:`.structs.TeacherRows` over tensors, which it keeps alive."""

    def __init__(
        self,
        logits: Tensor,
        uncond_logits: Tensor | None,
        guidance_scale: Tensor,
        top_k: int,
        top_p: float,
    ) -> None:
        logits = unit_stride(logits)
        uncond_logits = None if uncond_logits is None else unit_stride(uncond_logits)
        guidance_scale = guidance_scale.contiguous()
        self._kept = (logits, uncond_logits, guidance_scale)
        self.arguments = structs.TeacherRows(
            logits=logits.data_ptr(),
            uncond=address(uncond_logits),
            scale=guidance_scale.data_ptr(),
            logits_stride=logits.stride(0),
            uncond_stride=0 if uncond_logits is None else uncond_logits.stride(0),
            rows=logits.shape[0],
            vocabulary=logits.shape[1],
            top_k=top_k,
            top_p=top_p,
            logit_type=LOGIT_TYPES[logits.dtype],
        )


def unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
