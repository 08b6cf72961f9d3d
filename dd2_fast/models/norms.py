"""The decoders' group norms, and what takes their place for inference: one call of
:func:`dd2_fast.ops.group_norm_silu` for a convolution's bias, a block's skip, norm and SiLU."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import group_norm_silu
from ..ops.registry import has_kernel, named
from .folded import ChannelsLastConv, Folded, convolution


class NormSiLU(nn.GroupNorm):
    """``SiLU(GN(h))``; its parameters are those of the norm."""

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(super().forward(input), inplace=not torch.is_grad_enabled())


class Unsummed(NamedTuple):
    """``x + bias + residual``, left to the norm that reads it; nothing else holds the maps.

    ``bias [C]`` is that of the convolution that made ``x``, None where it is in ``x`` already.
    """

    x: Tensor
    bias: Tensor | None
    residual: Tensor | None

    def add(self) -> Tensor:
        """The sum, in the place of ``x``."""
        x, bias, residual = self
        if bias is not None:
            x = x.add_(bias.to(x.dtype)[:, None, None])
        return x if residual is None else x.add_(residual)


def summed(h: Tensor | Unsummed) -> Tensor:
    """What a part reads that is no norm."""
    return h.add() if isinstance(h, Unsummed) else h


def has_fused_group_norm(like: Tensor) -> bool:
    """Whether the operator is used for maps on the device and in the dtype of ``like``."""
    # The meta device stands for CUDA where launches are counted.
    if like.device.type == "meta":
        return like.dtype != torch.float64
    if like.device.type == "cpu" and like.dtype != torch.float32 and named() in ("", "cpu"):
        return False  # not measured
    return has_kernel("group_norm_silu", like.device, like.dtype)


class FusedNorm(Folded):
    """A norm, of sums that are left to it too."""

    weight: Tensor
    bias: Tensor

    def __init__(self, source: nn.GroupNorm) -> None:
        super().__init__(source)
        self.silu = isinstance(source, NormSiLU)
        self.fused = has_fused_group_norm(source.weight)

    def fold(self) -> dict[str, Tensor]:
        """In float32 or wider, as the kernels read them."""
        wide = torch.promote_types(self.source.weight.dtype, torch.float32)
        return {name: getattr(self.source, name).detach().to(wide) for name in ("weight", "bias")}

    def forward(self, h: Tensor | Unsummed) -> Tensor:
        return self.with_sum(h)[1]

    def with_sum(self, h: Tensor | Unsummed) -> tuple[Tensor, Tensor]:
        """What was normalised, if it is ``h`` or has a residual, and the result."""
        x, bias, residual = h if isinstance(h, Unsummed) else (h, None, None)
        compiles = torch.compiler.is_compiling()
        on_cpu = x.device.type == "cpu" and (compiles or named() in ("", "cpu"))
        # A CPU's compiler fuses by itself, and what is exported is to run anywhere.
        leaves = torch.compiler.is_exporting() or (on_cpu and compiles)
        if not self.fused or x.requires_grad or x.dtype != self.source.weight.dtype or leaves:
            total = summed(h)
            return total, self.source(total)
        if on_cpu and isinstance(h, Unsummed):
            return self._overwrite(h)
        out = group_norm_silu(
            x, self.weight, self.bias, self.source.num_groups, eps=self.source.eps,
            activation="silu" if self.silu else None, pre_bias=bias, residual=residual,
        )  # fmt: skip
        return (x, out) if isinstance(out, Tensor) else out

    def _overwrite(self, h: Unsummed) -> tuple[Tensor, Tensor]:
        """By the C++ kernel in the place of the maps: new ones cost a CPU as much as the norm."""
        from ..ops.group_norm_silu.cpu import group_norm_silu_

        x = h.x.movedim(1, -1).contiguous()
        residual = None if h.residual is None else h.residual.movedim(1, -1).contiguous()
        group_norm_silu_(
            x.flatten(1, -2), self.weight, self.bias, self.source.num_groups, self.source.eps,
            self.silu, h.bias, None if residual is None else residual.flatten(1, -2),
        )  # fmt: skip
        y = x.movedim(-1, 1)
        return y if residual is None else residual.movedim(-1, 1), y


class LateBias(ChannelsLastConv):
    """A convolution whose bias, in float32, is left to what reads its output."""

    late: Tensor

    def fold(self) -> dict[str, Tensor]:
        bias = self.source.bias.detach()
        return {**super().fold(), "late": bias.to(torch.promote_types(bias.dtype, torch.float32))}


def before_norm(source: nn.Conv2d) -> nn.Module:
    """What runs a convolution before a norm: on a CPU its bias costs nothing."""
    return source if source.weight.device.type == "cpu" else LateBias(source)


def convolved(conv: nn.Module, h: Tensor, residual: Tensor | None = None) -> Unsummed:
    """The output of a convolution of :func:`before_norm`, and what is left to add."""
    if not isinstance(conv, LateBias):
        return Unsummed(conv(h), None, residual)
    return Unsummed(F.conv2d(h, conv.weight, None, conv.stride, conv.padding), conv.late, residual)


class FusedResidual(nn.Module):
    """A residual block of either family, whose last sum is left to what reads it."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = FusedNorm(source.norm1), FusedNorm(source.norm2)
        self.conv1, self.conv2 = before_norm(source.conv1), before_norm(source.conv2)
        shortcut = getattr(source, "nin_shortcut", None)
        self.skip = convolution(shortcut) if isinstance(shortcut, nn.Conv2d) else nn.Identity()

    def forward(self, h: Tensor | Unsummed) -> Unsummed:
        total, y = self.norm1.with_sum(h)
        y = self.norm2(convolved(self.conv1, y))
        return convolved(self.conv2, y, self.skip(total))
