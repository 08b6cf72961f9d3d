"""A small generator in plain torch over its packed weights: the specification of every backend.

``h = [class, Linear(e_1) .. Linear(e_{n-1})] + positions`` goes through pre-LN blocks
``h += Attention(LN(h)); h += MLP(LN(h))`` with causal attention and a tanh GELU; the flow head
``v`` with ``c = SiLU(Linear(LN(h)))`` has residual blocks
``x += gate * MLP(LN(x) * scale + shift)``; embeddings are ``noise - v``. The decoder is the small
tokenizer's: a convolution, a residual, twice the resolution, one gray channel. Gains of norms,
the time t = 1 and the 1 of ``1 + scale`` are in the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..small_network import GeneratorSizes, Reader, blocks, normalize, start


def small_generator(
    x: Tensor,
    labels: Tensor | None,
    weights: Tensor | None,
    decoder: Tensor | None,
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Embeddings ``[B, n, C]`` and images ``[B, 3, H, W]`` of noise ``x [B, n, C]``.

    Args:
        labels: int64 ``[B]``. weights: packed; None for both: ``x`` are embeddings.
        decoder: packed; None: no images, ``[B, 3, 0, 0]``.
        sizes: :class:`.GeneratorSizes`.
    """
    sizes = GeneratorSizes(*sizes)
    embeddings = x
    if weights is not None and labels is not None:
        embeddings = _embeddings(x, labels, Reader(weights), sizes)
    if decoder is None:
        return embeddings, x.new_empty(len(x), 3, 0, 0)
    return embeddings, _pixels(embeddings, Reader(decoder), sizes.decoder_width)


def _embeddings(noise: Tensor, labels: Tensor, weights: Reader, sizes: GeneratorSizes) -> Tensor:
    h = start(weights, noise[:, :-1], labels, sizes.classes, sizes.width, noise.shape[1])
    h = blocks(weights, h, sizes.layers, sizes.heads)
    width = sizes.head_width
    condition = F.silu(weights.apply(normalize(h), width))
    x = weights.apply(noise, width)
    for _ in range(sizes.head_blocks):
        shift, scale, gate = weights.apply(condition, 3 * width).chunk(3, -1)
        inner = F.silu(weights.apply(normalize(x) * scale + shift, width))
        x = x + gate * weights.apply(inner, width)
    shift, scale = weights.apply(condition, 2 * width).chunk(2, -1)
    return noise - weights.apply(normalize(x) * scale + shift, noise.shape[-1])


def _convolved(weights: Reader, h: Tensor, outputs: int) -> Tensor:
    """A 3x3 convolution of ``h [B, H, W, C]``; its weights read the taps row by row."""
    padded = F.pad(h, (0, 0, 1, 1, 1, 1))
    windows = padded.unfold(1, 3, 1).unfold(2, 3, 1)  # [B, H, W, C, 3, 3]
    return weights.apply(windows.permute(0, 1, 2, 4, 5, 3).flatten(3), outputs)


def _pixels(embeddings: Tensor, weights: Reader, width: int) -> Tensor:
    batch, tokens, dim = embeddings.shape
    grid = math.isqrt(tokens)
    shift, scale = weights.floats(dim), weights.floats(dim)
    h = _convolved(weights, (embeddings * scale + shift).view(batch, grid, grid, dim), width)
    h = h + weights.apply(F.gelu(_convolved(weights, F.gelu(h), width)), width)
    cells = F.gelu(weights.apply(F.gelu(h), 4 * width)).view(batch, grid, grid, 2, 2, width)
    fine = cells.transpose(2, 3).reshape(batch, 2 * grid, 2 * grid, width)
    taps = F.pad(weights.apply(fine, 9), (0, 0, 1, 1, 1, 1))
    side = range(3)
    size = 2 * grid
    gray = weights.floats(1) + sum(
        taps[:, dy : dy + size, dx : dx + size, 3 * dy + dx] for dy in side for dx in side
    )
    images = gray.nan_to_num(torch.nan, torch.nan, torch.nan) * 0.5 + 0.5
    return images.clamp(0, 1)[:, None].expand(-1, 3, -1, -1)
