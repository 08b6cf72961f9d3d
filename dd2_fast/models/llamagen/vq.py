"""The convolutional encoder and decoder of LlamaGen's tokenizers, under their released names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels import attention, upsample_conv
from ..norms import NormSiLU


def group_norm(channels: int, groups: int, kind: type[nn.GroupNorm] = NormSiLU) -> nn.GroupNorm:
    return kind(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """``shortcut(x) + Conv(SiLU(GN(Conv(SiLU(GN(x))))))``, 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs, groups)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = group_norm(outputs, groups)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return self.nin_shortcut(x) + h


class AttentionBlock(nn.Module):
    """Self-attention of one head over all positions, on the channels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups, nn.GroupNorm)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2)[:, None] for f in (self.q, self.k, self.v))
        mixed = attention(q, k, v)[:, 0]
        return x + self.proj_out(mixed.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2))


class Downsample(nn.Module):
    """Half the resolution by a strided convolution, padded at the bottom and the right only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the resolution by repetition, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return upsample_conv(x, self.conv.weight, self.conv.bias)


class Level(nn.Module):
    """The blocks of one resolution, then a step to the next one (None at the last)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        blocks: int,
        *,
        groups: int,
        attends: bool,
        step: str | None,
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(
            ResidualBlock(outputs if i else inputs, outputs, groups) for i in range(blocks)
        )
        self.attn = nn.ModuleList(
            AttentionBlock(outputs, groups) for _ in range(blocks if attends else 0)
        )
        self.downsample = Downsample(outputs) if step == "down" else None
        self.upsample = Upsample(outputs) if step == "up" else None

    def forward(self, h: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            h = block(h)
            if len(self.attn):
                h = self.attn[i](h)
        for step in (self.downsample, self.upsample):
            if step is not None:
                h = step(h)
        return h


def middle(channels: int, groups: int) -> nn.ModuleList:
    """Residual block, attention, residual block at the lowest resolution."""
    return nn.ModuleList(
        [
            ResidualBlock(channels, channels, groups),
            AttentionBlock(channels, groups),
            ResidualBlock(channels, channels, groups),
        ]
    )


@dataclass(frozen=True)
class Sizes:
    """Of encoder and decoder: a width for each of the ``multiples`` of ``channels``, Z ``latents``,
    residual ``blocks`` a resolution, images of ``image_channels``, GroupNorms of ``groups``."""

    channels: int
    multiples: Sequence[int]
    latents: int
    blocks: int
    image_channels: int
    groups: int


class Encoder(nn.Module):
    """Images ``[B, c, H, W]`` in [-1, 1] to latents ``[B, Z, H / f, W / f]``."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        channels, groups = sizes.channels, sizes.groups
        self.conv_in = nn.Conv2d(sizes.image_channels, channels, 3, padding=1)
        last = len(sizes.multiples) - 1
        widths = [channels, *(channels * m for m in sizes.multiples)]
        self.conv_blocks = nn.ModuleList(
            Level(
                widths[i],
                widths[i + 1],
                sizes.blocks,
                groups=groups,
                attends=i == last,
                step="down" if i < last else None,
            )
            for i in range(last + 1)
        )
        self.mid = middle(widths[-1], groups)
        self.norm_out = group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], sizes.latents, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for block in (*self.conv_blocks, *self.mid):
            h = block(h)
        return self.conv_out(self.norm_out(h))


class Decoder(nn.Module):
    """Latents ``[B, Z, h, w]`` to images ``[B, c, f h, f w]``, in [-1, 1] but unclamped."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        channels, groups = sizes.channels, sizes.groups
        last = len(sizes.multiples) - 1
        widths = [channels * m for m in reversed(sizes.multiples)]
        self.conv_in = nn.Conv2d(sizes.latents, widths[0], 3, padding=1)
        self.mid = middle(widths[0], groups)
        # In the order in which they run: level 0 is the lowest resolution, the one that attends.
        self.conv_blocks = nn.ModuleList(
            Level(
                widths[max(i - 1, 0)],
                widths[i],
                sizes.blocks + 1,
                groups=groups,
                attends=i == 0,
                step="up" if i < last else None,
            )
            for i in range(last + 1)
        )
        self.norm_out = group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], sizes.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z)
        for block in (*self.mid, *self.conv_blocks):
            h = block(h)
        return self.conv_out(self.norm_out(h))
