"""The transformer block of LlamaGen: RMSNorm, rotary attention over a grid, SwiGLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cache import KVCache
from ..kernels import Linear, Pending, add_norm, causal_attention, has_fused_norm

EPS = 1e-5


def rotary_table(grid: int, size: int, base: float = 10000.0) -> Tensor:
    """Cosines and sines ``[1 + grid^2, size / 2, 2]`` (float32) of heads of ``size`` channels.

    The first half of the pairs turns with the token's row, the second with its column, at the
    rates ``base^(-4 k / size)``. Row 0 is the class: both are 0, which makes its query and key 0.
    """
    # An explicit device: the values are wanted in a model built on the meta device too.
    place = torch.arange(grid, dtype=torch.float32, device="cpu")
    pairs = torch.arange(0, size // 2, 2, dtype=torch.float32, device="cpu")
    angles = torch.outer(place, 1.0 / base ** (pairs / (size // 2)))
    rows = angles[:, None].expand(-1, grid, -1)
    columns = angles[None].expand(grid, -1, -1)
    both = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    return F.pad(torch.stack([both.cos(), both.sin()], dim=-1), (0, 0, 0, 0, 1, 0))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """``x [B, m, *, size]`` with neighbouring channels turned by ``table [m, size / 2, 2]``."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
    table = table.view(-1, *(1,) * (x.ndim - 3), *table.shape[1:])
    if torch.compiler.is_compiling():
        # Inductor fuses this, and has no code for complex numbers.
        (a, b), (cos, sin) = wide.unbind(-1), table.unbind(-1)
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1)
    else:
        # One kernel where eager code takes eight for the above: 2 to 60 times faster on a CPU.
        turned = torch.view_as_real(torch.view_as_complex(wide) * torch.view_as_complex(table))
    return turned.flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and no biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = Linear(width, 3 * width, bias=False)
        self.wo = Linear(width, width, bias=False)

    def forward(self, x: Tensor, rotation: Tensor, cache: KVCache | None = None) -> Tensor:
        batch, length, width = x.shape
        qkv = self.wqkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k = rotate(qkv[:, :, :2], rotation).transpose(1, 3).unbind(2)
        v = qkv[:, :, 2].transpose(1, 2)
        if cache is not None:
            k, v = cache.append(k, v)
        mixed = causal_attention(q, k, v)
        return self.wo(mixed.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """SwiGLU: ``w2(SiLU(w1 x) * w3 x)``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = Linear(width, hidden, bias=False)
        self.w3 = Linear(width, hidden, bias=False)
        self.w2 = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Pre-norm block: ``h += Attention(RMSNorm(h)); h += FeedForward(RMSNorm(h))``."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.feed_forward = FeedForward(width, hidden)
        self.attention_norm = nn.RMSNorm(width, eps=EPS)
        self.ffn_norm = nn.RMSNorm(width, eps=EPS)

    def forward(self, h: Tensor, rotation: Tensor, cache: KVCache | None = None) -> Tensor:
        if not has_fused_norm(h):
            h = h + self.attention(self.attention_norm(h), rotation, cache)
            return h + self.feed_forward(self.ffn_norm(h))
        h, y = add_rms_norm(h, self.attention_norm)
        h, y = add_rms_norm(Pending(h, self.attention(y, rotation, cache)), self.ffn_norm)
        return h + self.feed_forward(y)


def add_rms_norm(h: Tensor | Pending, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
    """The sum and its norm in one kernel."""
    return add_norm(h, weight=norm.weight, norm="rms", eps=EPS)
