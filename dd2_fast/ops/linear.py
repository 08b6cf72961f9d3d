"""A linear layer's product by the faster of torch's libraries."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Rows and multiply-adds from which a float32 product is worth oneDNN's set-up.
_MANY_ROWS, _MANY_PRODUCTS = 128, 1 << 22


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x W^T + b`` for ``x [*, D]``, ``weight [O, D]``, as ``F.linear``.

    Large float32 products without gradients on a CPU run as a 1x1 convolution over ``x`` with its
    channels last, without a copy: MKL, which ``F.linear`` calls, has about half of oneDNN's speed
    on AMD's processors. (bfloat16 goes to oneDNN anyway.)
    """
    if x.numel() * weight.shape[0] < _MANY_PRODUCTS:  # first: small calls are many and short
        return F.linear(x, weight, bias)
    rows = x.shape[:-1].numel()
    if (
        x.dtype != torch.float32
        or x.device.type != "cpu"
        or rows < _MANY_ROWS
        or (torch.is_grad_enabled() and _need_gradients(x, weight, bias))
        or torch.compiler.is_compiling()
        or not torch.backends.mkldnn.is_available()
    ):
        return F.linear(x, weight, bias)
    pixels = x.reshape(1, rows, 1, -1).permute(0, 3, 1, 2)
    mapped = F.conv2d(pixels, weight[:, :, None, None], bias)
    return mapped.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def _need_gradients(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)
