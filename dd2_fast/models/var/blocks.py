"""VAR's transformer blocks, under the released names."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ops import add_norm_modulate
from ..kernels import Linear, has_fused_norm, linear
from .attention import Attend

EPSILON = 1e-6
_TINY = 1e-24  # keeps a zero vector's norm from dividing by zero
LARGEST_SCALE = math.log(100.0)


def modulate(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``LN(h) (1 + scale) + shift``, a LayerNorm without weights."""
    if has_fused_norm(h):
        return add_norm_modulate(h, scale=scale, shift=shift, eps=EPSILON)[1]
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=EPSILON), 1 + scale)


def add_modulate(
    h: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """``h + gate branch``, and that as :func:`modulate` has it."""
    if has_fused_norm(h):
        return add_norm_modulate(h, branch=branch, gate=gate, scale=scale, shift=shift, eps=EPSILON)
    h = torch.addcmul(h, gate, branch)
    return h, modulate(h, scale, shift)


class SelfAttention(nn.Module):
    """Multi-head attention with one qkv matrix ``(3, heads, size)``; the keys have no bias.

    With ``l2_norm`` the score of a pair is ``exp(min(s_head, ln 100)) q k / (|q| |k|)``, else
    ``q k / (4 sqrt(size))``.
    """

    def __init__(self, width: int, heads: int, *, l2_norm: bool) -> None:
        super().__init__()
        self.heads, self.l2_norm = heads, l2_norm
        if l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.mat_qkv = Linear(width, 3 * width, bias=False)
        self.proj = Linear(width, width)

    def forward(self, h: Tensor, attend: Attend) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = linear(h, self.mat_qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        size = q.shape[-1]
        scale = 0.25 / math.sqrt(size)
        if self.l2_norm:
            # rms_norm is the unit vector times sqrt(size); the scale takes both roots back.
            gain = self.scale_mul_1H11.clamp(max=LARGEST_SCALE).exp()
            q = F.rms_norm(q, (size,), eps=_TINY) * gain
            k = F.rms_norm(k, (size,), eps=_TINY)
            scale = 1 / size
        return self.proj(attend(q, k, v, scale).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """``fc2(GELU(fc1(h)))``, GELU by tanh, four times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(h), approximate="tanh"))


def modulation_layer(width: int, count: int) -> nn.Sequential:
    """SiLU and a Linear from a class embedding to ``count`` vectors; zero at first."""
    linear = Linear(width, count * width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.SiLU(), linear)


class Block(nn.Module):
    """``h += gamma1 Attention(LN(h) (1 + scale1) + shift1)``, then the MLP with index 2.

    The six vectors come from the class, by a Linear of the block or, with ``shared_aln``, as an
    offset ``ada_gss`` to those of one Linear for all blocks.
    """

    def __init__(self, width: int, heads: int, *, shared_aln: bool, l2_norm: bool) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads, l2_norm=l2_norm)
        self.ffn = FeedForward(width)
        if shared_aln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width) / math.sqrt(width))
        else:
            self.ada_lin = modulation_layer(width, 6)

    def modulation(self, condition: Tensor) -> Tensor:
        """``[6, B, 1, D]``: gamma1, gamma2, scale1, scale2, shift1, shift2.

        ``condition``: the class embedding ``[B, D]``, or the shared layer's output ``[B, 6 D]``.
        """
        shared = hasattr(self, "ada_gss")
        vectors = condition if shared else self.ada_lin(condition)
        vectors = vectors.unflatten(-1, (1, 6, -1))
        return (vectors + self.ada_gss if shared else vectors).permute(2, 0, 1, 3)

    def forward(
        self, h: Tensor, modulation: Tensor, attend: Attend, between: Tensor | None = None
    ) -> Tensor:
        """``h [B, m, D]`` after the block; ``between`` is added between its two halves."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation
        branch = self.attn(modulate(h, scale1, shift1), attend)
        h = h if between is None else h + between
        h, y = add_modulate(h, branch, gamma1, scale2, shift2)
        return torch.addcmul(h, gamma2, self.ffn(y))


class HeadNorm(nn.Module):
    """The modulated LayerNorm before the classifier: scale, then shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = modulation_layer(width, 2)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.ada_lin(condition)[:, None].chunk(2, dim=-1)
        return modulate(h, scale, shift)
