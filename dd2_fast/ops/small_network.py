"""How the weights of a small network lie in one array: ``csrc/include/dd2/small_network.h``.

Parts follow one another, each filled up with zeros to a multiple of 16 numbers. A layer
``y = x W^T + b`` is its bias, then ``W`` in panels of 16 outputs, ``[outputs / 16, inputs, 16]``.
"""

from __future__ import annotations

import ctypes
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import structs

PANEL = 16
MOST_TOKENS = 64
WIDEST = 256


class SmallTransformer(ctypes.Structure):
    """``dd2::SmallTransformer``."""

    _fields_ = [
        ("weights", ctypes.c_void_p),
        *structs.fields("classes tokens dim width layers heads", ctypes.c_int),
    ]


class GeneratorSizes(NamedTuple):
    """What a generator's weights do not say; 0 where there is no such part."""

    classes: int = 0  # with the null class
    width: int = 0
    layers: int = 0
    heads: int = 0
    head_width: int = 0
    head_blocks: int = 0
    decoder_width: int = 0

    def generator_length(self, tokens: int, dim: int) -> int:
        """How many numbers the weights of backbone and head are."""
        width, head = self.width, self.head_width
        block = layer_length(head, 3 * head) + 2 * layer_length(head, head)
        return (
            _transformer_length(self, tokens, dim)
            + layer_length(width, head)
            + layer_length(dim, head)
            + self.head_blocks * block
            + layer_length(head, 2 * head)
            + layer_length(head, dim)
        )

    def decoder_length(self, dim: int) -> int:
        """How many numbers the weights of a decoder are."""
        width = self.decoder_width
        layers = ((9 * dim, width), (9 * width, width), (width, width), (width, 4 * width))
        taps = layer_length(width, 9)
        return 2 * up_to_panel(dim) + sum(layer_length(*each) for each in layers) + taps + PANEL


class TeacherSizes(NamedTuple):
    """What a teacher's weights do not say."""

    classes: int  # with the null class
    width: int
    layers: int
    heads: int

    def length(self, tokens: int, dim: int, vocabulary: int) -> int:
        """How many numbers the weights are."""
        return _transformer_length(self, tokens, dim) + layer_length(self.width, vocabulary)


def up_to_panel(count: int) -> int:
    return -(-count // PANEL) * PANEL


def layer_length(inputs: int, outputs: int) -> int:
    return (inputs + 1) * up_to_panel(outputs)


def _transformer_length(sizes: GeneratorSizes | TeacherSizes, tokens: int, dim: int) -> int:
    width = sizes.width
    layers = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    block = sum(layer_length(*each) for each in layers)
    table = up_to_panel(sizes.classes * width) + up_to_panel(tokens * width)
    return table + layer_length(dim, width) + sizes.layers * block


class Writer:
    """Collects the parts of one array, in the dtype they come in."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def floats(self, values: Tensor) -> None:
        flat = values.reshape(-1)
        self._parts.append(F.pad(flat, (0, up_to_panel(len(flat)) - len(flat))))

    def layer(self, weight: Tensor, bias: Tensor) -> None:
        """``weight [O, K]``, ``bias [O]``."""
        missing = up_to_panel(len(weight)) - len(weight)
        self.floats(bias)
        panels = F.pad(weight, (0, 0, 0, missing)).unflatten(0, (-1, PANEL))
        self.floats(panels.transpose(1, 2))

    def array(self) -> Tensor:
        return torch.cat(self._parts)


class Reader:
    """The parts of an array in their order."""

    def __init__(self, array: Tensor) -> None:
        self._array, self._at = array, 0

    def floats(self, *shape: int) -> Tensor:
        count, start = math.prod(shape), self._at
        self._at += up_to_panel(count)
        return self._array[start : start + count].view(shape)

    def layer(self, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
        """``W [O, K]`` and ``b [O]``."""
        padded = up_to_panel(outputs)
        bias = self.floats(padded)[:outputs]
        panels = self.floats(padded // PANEL, inputs, PANEL)
        return panels.transpose(1, 2).reshape(padded, inputs)[:outputs], bias

    def apply(self, x: Tensor, outputs: int) -> Tensor:
        """The next layer of ``x [*, K]``."""
        weight, bias = self.layer(x.shape[-1], outputs)
        return F.linear(x, weight, bias)


def normalize(h: Tensor) -> Tensor:
    """LayerNorm without gain and bias."""
    return F.layer_norm(h, h.shape[-1:])


def blocks(weights: Reader, h: Tensor, layers: int, heads: int) -> Tensor:
    """The transformer's blocks over ``h [B, n, width]``."""
    batch, length, width = h.shape
    for _ in range(layers):
        qkv = weights.apply(normalize(h), 3 * width).view(batch, length, 3, heads, width // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
        h = h + weights.apply(mixed.transpose(1, 2).reshape(h.shape), width)
        wide = F.gelu(weights.apply(normalize(h), 4 * width), approximate="tanh")
        h = h + weights.apply(wide, width)
    return h


def start(
    weights: Reader, read: Tensor, labels: Tensor, classes: int, width: int, tokens: int
) -> Tensor:
    """The blocks' input ``[B, m + 1, width]``: the class, then ``read [B, m, dim]``."""
    table = weights.floats(classes, width)
    positions = weights.floats(tokens, width)[: read.shape[1] + 1]
    return torch.cat([table[labels][:, None], weights.apply(read, width)], 1) + positions
