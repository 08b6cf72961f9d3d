"""The Inception graph of 2015 that FID is by, from its description: TensorFlow's blocks in their
order, in float64.

A layer is (name, channels, height, width, stride): a convolution without a bias, whose padding is
SAME where its stride is 1 (in the stem where it says so), batch normalisation and ReLU. A branch is
what pools its input and its layers; a pair of layers as the last reads the same and is put side by
side. Average pooling counts no padding. The second of the last two blocks takes the maximum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SIZE, CLASSES, EPSILON = 299, 1008, 1e-3
# TensorFlow's names of the blocks, and torchvision's.
NAMES = {
    "mixed" + (f"_{i}" if i else ""): f"Mixed_{name}"
    for i, name in enumerate(["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"])
}
STEM = (  # and whether the padding is SAME, and what follows is pooled
    (("Conv2d_1a_3x3", 32, 3, 3, 2), False, False),
    (("Conv2d_2a_3x3", 32, 3, 3, 1), False, False),
    (("Conv2d_2b_3x3", 64, 3, 3, 1), True, True),
    (("Conv2d_3b_1x1", 80, 1, 1, 1), False, False),
    (("Conv2d_4a_3x3", 192, 3, 3, 1), False, True),
)
Layer = tuple[str, int, int, int, int]
Branch = tuple[str, list[Any]]


def _a(pool: int) -> list[Branch]:
    return [
        ("", [("branch1x1", 64, 1, 1, 1)]),
        ("", [("branch5x5_1", 48, 1, 1, 1), ("branch5x5_2", 64, 5, 5, 1)]),
        ("", [("branch3x3dbl_1", 64, 1, 1, 1), *_twice(96, 1)]),
        ("average", [("branch_pool", pool, 1, 1, 1)]),
    ]


def _twice(channels: int, stride: int) -> list[Layer]:
    return [(f"branch3x3dbl_{i}", channels, 3, 3, s) for i, s in ((2, 1), (3, stride))]


def _c(inner: int) -> list[Branch]:
    return [
        ("", [("branch1x1", 192, 1, 1, 1)]),
        ("", _chain("branch7x7", (inner, 1, 1), (inner, 1, 7), (192, 7, 1))),
        ("", _chain("branch7x7dbl", (inner, 1, 1), *[(inner, 7, 1), (inner, 1, 7)] * 2)),
        ("average", [("branch_pool", 192, 1, 1, 1)]),
    ]


def _chain(name: str, *layers: tuple[int, int, int]) -> list[Layer]:
    chain = [(f"{name}_{i}", *layer, 1) for i, layer in enumerate(layers, 1)]
    last = chain[-1]
    return [*chain[:-1], (last[0], 192, *last[2:])]


def _e(pool: str) -> list[Branch]:
    def fork(name: str) -> tuple[Layer, Layer]:
        return (f"{name}a", 384, 1, 3, 1), (f"{name}b", 384, 3, 1, 1)

    return [
        ("", [("branch1x1", 320, 1, 1, 1)]),
        ("", [("branch3x3_1", 384, 1, 1, 1), fork("branch3x3_2")]),
        (
            "",
            [
                ("branch3x3dbl_1", 448, 1, 1, 1),
                ("branch3x3dbl_2", 384, 3, 3, 1),
                fork("branch3x3dbl_3"),
            ],
        ),
        (pool, [("branch_pool", 192, 1, 1, 1)]),
    ]


BLOCKS: dict[str, list[Branch]] = {
    "mixed": _a(32),
    "mixed_1": _a(64),
    "mixed_2": _a(64),
    "mixed_3": [
        ("", [("branch3x3", 384, 3, 3, 2)]),
        ("", [("branch3x3dbl_1", 64, 1, 1, 1), *_twice(96, 2)]),
        ("halve", []),
    ],
    "mixed_4": _c(128),
    "mixed_5": _c(160),
    "mixed_6": _c(160),
    "mixed_7": _c(192),
    "mixed_8": [
        ("", [("branch3x3_1", 192, 1, 1, 1), ("branch3x3_2", 320, 3, 3, 2)]),
        (
            "",
            [
                *_chain("branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1)),
                ("branch7x7x3_4", 192, 3, 3, 2),
            ],
        ),
        ("halve", []),
    ],
    "mixed_9": _e("average"),
    "mixed_10": _e("maximum"),
}


def convolutions() -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """Names and shapes ``[O, C, height, width]`` of all weights."""
    width = 3
    for (name, channels, *kernel, _), _, _ in STEM:
        yield name, (channels, width, *kernel)
        width = channels
    for block, branches in BLOCKS.items():
        total = 0
        for _, layers in branches:
            inside = width
            for step in layers:
                pair = step if isinstance(step[0], tuple) else (step,)
                for name, channels, *kernel, _ in pair:
                    yield f"{NAMES[block]}.{name}", (channels, inside, *kernel)
                inside = sum(layer[1] for layer in pair)
            total += inside
        width = total
    assert width == 2048


def random_weights(seed: int) -> dict[str, Tensor]:
    """float32 weights under the names that released files have."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    found = {}
    for name, shape in convolutions():
        fan_in = shape[1] * shape[2] * shape[3]
        found[f"{name}.conv.weight"] = normal(*shape) * (2 / fan_in) ** 0.5
        found[f"{name}.bn.weight"] = 1 + 0.2 * normal(shape[0])
        found[f"{name}.bn.bias"] = 0.2 * normal(shape[0])
        found[f"{name}.bn.running_mean"] = 0.2 * normal(shape[0])
        found[f"{name}.bn.running_var"] = 0.5 + normal(shape[0]).square()
    found["fc.weight"], found["fc.bias"] = 0.02 * normal(CLASSES, 2048), normal(CLASSES)
    return found


class Graph:
    """``pool [B, 2048]``, ``mixed_6/conv [B, 192, 17, 17]`` and logits without their bias
    ``[B, 1008]`` of uint8 images ``[B, 3, H, W]``, in float64."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = {name: tensor.double() for name, tensor in weights.items()}

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, kept = (resized(images) - 128) * 0.0078125, images
        for layer, same, pooled in STEM:
            x = self._layer("", layer, x, same)
            x = F.max_pool2d(x, 3, 2) if pooled else x
        for block, branches in BLOCKS.items():
            parts = []
            for pool, layers in branches:
                h = pooling(pool, x)
                for step in layers:
                    pair = step if isinstance(step[0], tuple) else (step,)
                    prefix = f"{NAMES[block]}."
                    h = torch.cat(
                        [self._layer(prefix, layer, h, layer[4] == 1) for layer in pair], 1
                    )
                if block == "mixed_6" and not parts:
                    kept = h
                parts.append(h)
            x = torch.cat(parts, 1)
        pool = x.sum((2, 3)) / 64
        return pool, kept, pool @ self.weights["fc.weight"].T

    def _layer(self, prefix: str, layer: Layer, x: Tensor, same: bool) -> Tensor:
        name, _, height, width, stride = layer
        name, padding = prefix + name, (height // 2, width // 2) if same else (0, 0)
        w = self.weights
        x = F.conv2d(x, w[f"{name}.conv.weight"], stride=stride, padding=padding)
        mean, variance, gain, bias = (
            w[f"{name}.bn.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (variance + EPSILON).sqrt() * gain + bias).clamp(min=0)


def pooling(kind: str, x: Tensor) -> Tensor:
    if kind == "halve":
        return F.max_pool2d(x, 3, 2)
    if kind == "maximum":
        return F.pad(x, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 1).unfold(3, 3, 1).amax((4, 5))
    if kind == "average":
        sums, counts = (
            F.pad(y, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).sum((4, 5))
            for y in (x, torch.ones_like(x[:1, :1]))
        )
        return sums / counts
    return x


def resized(images: Tensor) -> Tensor:
    """TensorFlow 1's bilinear: pixel i of 299 lies at ``i size / 299``, corners not aligned."""
    x = images.double().numpy()
    for axis in (2, 3):
        size = x.shape[axis]
        place = np.arange(SIZE) * (size / SIZE)
        low = place.astype(int)
        high = np.minimum(low + 1, size - 1)
        shape = [1] * 4
        shape[axis] = SIZE
        way = (place - low).reshape(shape)
        x = np.take(x, low, axis) * (1 - way) + np.take(x, high, axis) * way
    return torch.from_numpy(x)
