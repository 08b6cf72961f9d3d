"""A small convolutional classifier of images of any size, by whose eyes generated ones are seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_COARSEST = 4  # pixels a side before the last average


class _Level(nn.Module):
    """``h + conv(SiLU(GN(conv(SiLU(GN(h))))))`` after a convolution that halves."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.norm1 = nn.GroupNorm(4, outputs)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(4, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        h = self.enter(h)
        out = self.conv1(F.silu(self.norm1(h)))
        added: Tensor = h + self.conv2(F.silu(self.norm2(out)))
        return added


class ImageClassifier(nn.Module):
    """Classes of images ``[B, c, S, S]`` in [0, 1]; Fréchet distances use its ``features``.

    Residual levels halve the image down to 4 pixels a side, widths double up to four times
    ``width``; the features are a linear map of what is left, cell by cell.

    Args:
        image_size: S, pixels a side. in_channels: c. num_classes: classes. width: of the first
            level, a multiple of 4. feature_dim: of the features.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int,
        num_classes: int,
        width: int = 32,
        feature_dim: int = 64,
    ) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"width: expected a multiple of 4, got {width}")
        self.config: dict[str, Any] = dict(
            image_size=image_size,
            in_channels=in_channels,
            num_classes=num_classes,
            width=width,
            feature_dim=feature_dim,
        )
        widths, side = [width], image_size
        while side > _COARSEST:
            side = -(-side // 2)
            widths.append(min(widths[-1] * 2, 4 * width))
        pairs = zip([in_channels, *widths], widths, strict=False)
        self.levels = nn.ModuleList(_Level(a, b, 2 if i else 1) for i, (a, b) in enumerate(pairs))
        self.norm = nn.GroupNorm(4, widths[-1])
        self.project = nn.Linear(widths[-1] * side * side, feature_dim)
        self.classify = nn.Linear(feature_dim, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """The activations ``[B, feature_dim]`` before the last layer."""
        size, channels = self.config["image_size"], self.config["in_channels"]
        if images.ndim != 4 or tuple(images.shape[1:]) != (channels, size, size):
            raise ValueError(
                f"images: expected shape ['B', {channels}, {size}, {size}], "
                f"got {list(images.shape)}"
            )
        h = 2 * images - 1
        for level in self.levels:
            h = level(h)
        return F.silu(self.project(F.silu(self.norm(h)).flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, num_classes]``."""
        logits: Tensor = self.classify(self.features(images))
        return logits


@torch.no_grad()
def describe(classifier: Any, images: Tensor, *, batch: int = 250) -> tuple[Tensor, Tensor]:
    """Features ``[N, D]`` and predicted classes ``[N]`` of images, in evaluation mode."""
    features, predicted = [], []
    for part in images.split(batch):
        seen = classifier.features(part)
        features.append(seen)
        predicted.append(classifier.classify(seen).argmax(1))
    return torch.cat(features), torch.cat(predicted)
