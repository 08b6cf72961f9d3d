"""Group norm with what surrounds it in plain torch: the specification of every other backend."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    pre_bias: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The sum, empty without a residual, and the result, of ``x [B, pixels, C]``."""
    wide = torch.promote_types(x.dtype, torch.float32)
    s = x.to(wide)
    if pre_bias is not None:
        s = s + pre_bias.to(wide)
    total = x.new_empty(0)
    if residual is not None:
        total = (s + residual.to(wide)).to(x.dtype)
        s = total.to(wide)
    if s.numel() == 0:
        return total, torch.empty_like(x)
    of_group = s.unflatten(-1, (groups, -1))
    variance, mean = torch.var_mean(of_group, dim=(1, 3), keepdim=True, correction=0)
    normed = ((of_group - mean) * (variance + eps).rsqrt()).flatten(-2)
    y = torch.addcmul(bias.to(wide), normed, weight.to(wide))
    return total, (F.silu(y) if silu else y).to(x.dtype)
