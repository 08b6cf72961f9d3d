"""The small generator by the C++ kernel of ``csrc/cpu/small_generator.cpp``."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import extension
from ..native import cpu_launcher
from . import native


def small_generator(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Embeddings and images; arguments as in :mod:`.reference`."""
    return native.run(cpu_launcher("small_generator"), *arguments)


class Drawn:
    """The kernel with its weights, from seed to images or embeddings: what one small image waits
    for beside it is the time of a few calls of torch.

    Args:
        weights, decoder: packed float32 weights on the CPU; ``decoder`` None: embeddings.
        sizes: :class:`.GeneratorSizes`. tokens, dim: n and C.
    """

    def __init__(
        self, weights: Tensor, decoder: Tensor | None, sizes: Sequence[int], tokens: int, dim: int
    ) -> None:
        side = 2 * math.isqrt(tokens)
        self._shape = (tokens, dim) if decoder is None else (3, side, side)
        self._kept = weights, decoder
        self._run = extension.native().cpu_small_generator
        self._constant = native.SmallGeneratorParams(
            native.network(weights, sizes, tokens, dim),
            decoder=0 if decoder is None else decoder.data_ptr(),
            **native.others(sizes),
        )

    def __call__(
        self, seed: int, indices: Tensor, labels: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """Images, or embeddings, of int64 ``indices [B]`` and ``labels [B]``; of other ``noise``
        float32 ``[B, n, C]`` where it is given."""
        indices, labels = indices.cpu().contiguous(), labels.cpu().contiguous()
        count = labels.shape[0]
        out = torch.empty((count, *self._shape), dtype=torch.float32, device="cpu")
        params = native.SmallGeneratorParams.from_buffer_copy(self._constant)
        params.indices, params.labels = indices.data_ptr(), labels.data_ptr()
        if self._kept[1] is None:
            params.embeddings = out.data_ptr()
        else:
            params.pixels = out.data_ptr()
        params.seed, params.images = seed, count
        if noise is not None:
            params.x = noise.data_ptr()
        self._run(ctypes.addressof(params), torch.get_num_threads())
        return out
