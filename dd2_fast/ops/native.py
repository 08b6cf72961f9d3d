"""Tensors as arguments of the compiled kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import extension

_LOGIT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@dataclass(frozen=True)
class Launcher:
    """``launch(params)`` of a kernel, and the classes of ``structs`` that it takes as params."""

    structs: Any
    run: Callable[[Any], None]

    def __call__(self, params: Any) -> None:
        self.run(params)


def cpu_launcher(op: str) -> Launcher:
    """The C++ kernel of ``op`` on torch's number of threads."""
    module = extension.native()
    kernel = getattr(module, f"cpu_{op}")
    return Launcher(module, lambda params: kernel(params, torch.get_num_threads()))


def cuda_launcher(op: str, device: torch.device) -> Launcher:
    """The CUDA kernel of ``op`` on the current stream of ``device``."""
    module = extension.native()
    kernel = getattr(module, f"cuda_{op}")

    def launch(params: Any) -> None:
        with torch.cuda.device(device):
            kernel(params, torch.cuda.current_stream().cuda_stream)

    return Launcher(module, launch)


class TeacherRows:
    """``dd2::TeacherRows`` over tensors, which it keeps alive; ``structs`` as in :class:`Launcher`,
    by default the extension."""

    def __init__(
        self,
        logits: Tensor,
        uncond_logits: Tensor | None,
        guidance_scale: Tensor,
        top_k: int,
        top_p: float,
        structs: Any = None,
    ) -> None:
        logits = _unit_stride(logits)
        uncond_logits = None if uncond_logits is None else _unit_stride(uncond_logits)
        guidance_scale = guidance_scale.contiguous()
        self._kept = (logits, uncond_logits, guidance_scale)
        self.arguments: Any = (structs or extension.native()).TeacherRows(
            logits=logits.data_ptr(),
            uncond=address(uncond_logits),
            scale=guidance_scale.data_ptr(),
            logits_stride=logits.stride(0),
            uncond_stride=0 if uncond_logits is None else uncond_logits.stride(0),
            rows=logits.shape[0],
            vocabulary=logits.shape[1],
            top_k=top_k,
            top_p=top_p,
            logit_type=_LOGIT_TYPES[logits.dtype],
        )


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
