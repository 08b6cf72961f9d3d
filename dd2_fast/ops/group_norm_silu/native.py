"""Arguments of the compiled kernels from tensors; used by ``cpu``, ``cuda`` and ``cupy``."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .. import structs
from ..native import LOGIT_TYPES, Launch, address

MOST_CHANNELS = 4096  # whose moments a block of a GPU has in shared memory


class GroupNormSiluParams(ctypes.Structure):
    """``dd2::GroupNormSiluParams``."""

    _fields_ = [
        *structs.fields("y sum x residual weight bias pre_bias workspace", ctypes.c_void_p),
        *structs.fields("images pixels channels groups", ctypes.c_longlong),
        ("eps", ctypes.c_float),
        *structs.fields("silu type", ctypes.c_int),
    ]


def run(
    launch: Launch,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    pre_bias: Tensor | None,
    residual: Tensor | None,
    *,
    in_place: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sum and result by ``launch(params)``; arguments as in :mod:`.reference`. In place they are
    the residual and ``x``, contiguous ones."""
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    vectors = [None if v is None else v.float().contiguous() for v in (weight, bias, pre_bias)]
    y, total = (x, residual) if in_place else (torch.empty_like(x), None)
    if total is None:
        total = torch.empty_like(x) if residual is not None else x.new_empty(0)
    images, pixels, channels = x.shape
    if x.numel():
        launch(
            GroupNormSiluParams(
                y=y.data_ptr(),
                sum=0 if residual is None else total.data_ptr(),
                x=x.data_ptr(),
                residual=address(residual),
                weight=address(vectors[0]),
                bias=address(vectors[1]),
                pre_bias=address(vectors[2]),
                images=images,
                pixels=pixels,
                channels=channels,
                groups=groups,
                eps=eps,
                silu=silu,
                type=LOGIT_TYPES[x.dtype],
            )
        )
    return total, y


def run_on_gpu(launch: Launch, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """The same by the GPU kernels, of as many channels as they take."""
    if x.shape[-1] > MOST_CHANNELS:
        raise RuntimeError(
            f"the GPU kernels cannot run group_norm_silu: expected at most {MOST_CHANNELS} "
            f"channels, got C = {x.shape[-1]}"
        )
    if x.shape[1] >= 2**30:
        raise RuntimeError(
            f"the GPU kernels cannot run group_norm_silu: expected less than 2^30 pixels, got "
            f"{x.shape[1]}"
        )
    return run(launch, x, *arguments)
