"""The convolutional encoder and decoder of VAR's tokenizer, under the released names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels import attention, upsample_conv
from ..norms import NormSiLU


def _norm(channels: int, groups: int, kind: type[nn.GroupNorm] = NormSiLU) -> nn.GroupNorm:
    return kind(groups, channels, eps=1e-6)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Residual(nn.Module):
    """``skip(h) + Conv(SiLU(GN(Conv(SiLU(GN(h))))))``; a 1x1 skip where the channels change."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs, groups), _conv(inputs, outputs)
        self.norm2, self.conv2 = _norm(outputs, groups), _conv(outputs, outputs)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, h: Tensor) -> Tensor:
        out = self.conv2(self.norm2(self.conv1(self.norm1(h))))
        return out + (self.nin_shortcut(h) if hasattr(self, "nin_shortcut") else h)


class Attention(nn.Module):
    """``h + proj(softmax(q k / sqrt(C)) v)`` over all pixels, one head."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups, nn.GroupNorm)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(h)).flatten(2).unflatten(1, (3, 1, -1)).transpose(-1, -2)
        mixed = attention(*qkv.unbind(1))
        return h + self.proj_out(mixed[:, 0].unflatten(1, h.shape[2:]).permute(0, 3, 1, 2))


class _Middle(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = Residual(channels, channels, groups)
        self.attn_1 = Attention(channels, groups)
        self.block_2 = Residual(channels, channels, groups)

    def forward(self, h: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h)))


class Resample(nn.Module):
    """A convolution after doubling (nearest neighbour), or one that halves."""

    def __init__(self, channels: int, *, doubles: bool) -> None:
        super().__init__()
        self.doubles = doubles
        stride, padding = (1, 1) if doubles else (2, 0)
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=padding)

    def forward(self, h: Tensor) -> Tensor:
        if self.doubles:
            return upsample_conv(h, self.conv.weight, self.conv.bias)
        return self.conv(F.pad(h, (0, 1, 0, 1)))


class _Level(nn.Module):
    """Residual blocks at one resolution, each with attention at the lowest, then a resampling."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        blocks: int,
        *,
        groups: int,
        attention: bool,
        resample: str | None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            Residual(outputs if i else inputs, outputs, groups) for i in range(blocks)
        )
        self.attn = nn.ModuleList(
            Attention(outputs, groups) for _ in range(blocks if attention else 0)
        )
        if resample is not None:
            self.add_module(resample, Resample(outputs, doubles=resample == "upsample"))
        self._resample = resample

    def forward(self, h: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            h = block(h)
            h = self.attn[i](h) if self.attn else h
        return h if self._resample is None else self.get_submodule(self._resample)(h)


class Encoder(nn.Module):
    """Images ``[B, c, H, W]`` in [-1, 1] to ``[B, C, h, w]``, each level but the last halving.

    ``image_channels`` is c, ``groups`` those of every GroupNorm.
    """

    def __init__(
        self,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        dimension: int,
        *,
        image_channels: int = 3,
        groups: int = 32,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in multipliers]
        last = len(widths) - 1
        self.conv_in = _conv(image_channels, channels)
        self.down = nn.ModuleList(
            _Level(
                widths[i - 1] if i else channels,
                width,
                blocks,
                groups=groups,
                attention=i == last,
                resample=None if i == last else "downsample",
            )
            for i, width in enumerate(widths)
        )
        self.mid = _Middle(widths[-1], groups)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = _conv(widths[-1], dimension)

    def forward(self, images: Tensor) -> Tensor:
        h = self.conv_in(images)
        for level in self.down:
            h = level(h)
        return self.conv_out(self.norm_out(self.mid(h)))


class Decoder(nn.Module):
    """Features ``[B, C, h, w]`` to images ``[B, c, H, W]``, about [-1, 1]; one more block per level
    than the encoder. The levels are numbered from the image, so they run from the last."""

    def __init__(
        self,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        dimension: int,
        *,
        image_channels: int = 3,
        groups: int = 32,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in multipliers]
        last = len(widths) - 1
        self.conv_in = _conv(dimension, widths[-1])
        self.mid = _Middle(widths[-1], groups)
        self.up = nn.ModuleList(
            _Level(
                widths[min(i + 1, last)],
                width,
                blocks + 1,
                groups=groups,
                attention=i == last,
                resample="upsample" if i else None,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = _norm(widths[0], groups)
        self.conv_out = _conv(widths[0], image_channels)

    def forward(self, features: Tensor) -> Tensor:
        h = self.mid(self.conv_in(features))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(self.norm_out(h))
