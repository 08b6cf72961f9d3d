"""Arguments of the compiled kernels from tensors; used by ``cpu``, ``cuda`` and ``cupy``."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import structs
from ..native import Launch, address
from ..small_network import SmallTransformer


class SmallGeneratorParams(ctypes.Structure):
    """``dd2::SmallGeneratorParams``."""

    _fields_ = [
        ("network", SmallTransformer),
        *structs.fields("decoder x indices labels embeddings pixels workspace", ctypes.c_void_p),
        *structs.fields("seed images", ctypes.c_longlong),
        *structs.fields("head_width head_blocks decoder_width", ctypes.c_int),
    ]


def run(
    launch: Launch,
    x: Tensor,
    labels: Tensor | None,
    weights: Tensor | None,
    decoder: Tensor | None,
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Embeddings and images by ``launch(params)``; arguments as in :mod:`.reference`."""
    x = x.contiguous()
    labels = None if labels is None else labels.contiguous()
    batch, tokens, dim = x.shape
    side = 0 if decoder is None else 2 * math.isqrt(tokens)
    embeddings = torch.empty_like(x)
    if weights is None:
        embeddings.copy_(x)
    pixels = x.new_empty(batch, 3, side, side)
    launch(
        SmallGeneratorParams(
            network(weights, sizes, tokens, dim),
            decoder=address(decoder),
            x=x.data_ptr(),
            labels=address(labels),
            embeddings=embeddings.data_ptr(),
            pixels=pixels.data_ptr(),
            images=batch,
            **others(sizes),
        )
    )
    return embeddings, pixels


def network(
    weights: Tensor | None, sizes: Sequence[int], tokens: int, dim: int
) -> SmallTransformer:
    classes, width, layers, heads, *_ = sizes
    return SmallTransformer(address(weights), classes, tokens, dim, width, layers, heads)


def others(sizes: Sequence[int]) -> dict[str, int]:
    """The sizes beside those of the transformer."""
    return dict(zip(("head_width", "head_blocks", "decoder_width"), sizes[4:], strict=True))


class Drawn:
    """A kernel with its weights, from seed to images or embeddings: what one small image waits for
    beside it is the time of a few calls of torch.

    Args:
        launch: of the weights' device.
        weights, decoder: packed float32 weights; ``decoder`` None: embeddings.
        sizes: :class:`.GeneratorSizes`. tokens, dim: n and C.
    """

    def __init__(
        self,
        launch: Launch,
        weights: Tensor,
        decoder: Tensor | None,
        sizes: Sequence[int],
        tokens: int,
        dim: int,
    ) -> None:
        side = 2 * math.isqrt(tokens)
        self._shape = (tokens, dim) if decoder is None else (3, side, side)
        self._kept = weights, decoder
        self._launch, self._device = launch, weights.device
        self._constant = SmallGeneratorParams(
            network(weights, sizes, tokens, dim), decoder=address(decoder), **others(sizes)
        )

    def __call__(
        self, seed: int, indices: Tensor, labels: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """Images, or embeddings, of int64 ``indices [B]`` and ``labels [B]``; of other ``noise``
        float32 ``[B, n, C]`` where it is given."""
        device = self._device
        indices, labels = indices.to(device).contiguous(), labels.to(device).contiguous()
        count = labels.shape[0]
        out = torch.empty((count, *self._shape), dtype=torch.float32, device=device)
        params = SmallGeneratorParams.from_buffer_copy(self._constant)
        params.indices, params.labels = indices.data_ptr(), labels.data_ptr()
        if self._kept[1] is None:
            params.embeddings = out.data_ptr()
        else:
            params.pixels = out.data_ptr()
        params.seed, params.images = seed, count
        if noise is not None:
            params.x = noise.data_ptr()
        self._launch(params)
        return out
