"""Small generators and their decoder in one call of a kernel, where it covers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..models import DD2Generator
from ..models.small import Packed, packed_decoder, packed_generator
from ..models.tokenizer import VQTokenizer
from ..models.transformer import CausalTransformer
from ..ops import registry
from ..ops.small_generator import small_generator
from ..ops.small_generator.cpu import Drawn
from ..ops.small_network import GeneratorSizes
from .noise import image_noise

_OP = "small_generator"
Draw = Callable[[int, Tensor, Tensor], Tensor]  # seed, indices [B] and labels [B]


class AtOnce:
    """A generator and its tokenizer's decoder by :func:`.small_generator`.

    Methods return None where the kernel does not cover the networks as they are: of another kind or
    size, not in float32, with hooks, or where nothing is compiled.
    """

    def __init__(self, generator: Any, tokenizer: Any) -> None:
        self._generator, self._tokenizer = generator, tokenizer
        self._covered = (
            type(generator) is DD2Generator
            and type(generator.backbone) is CausalTransformer
            and type(tokenizer) is VQTokenizer
        )
        self._draws: dict[tuple[str, bool], tuple[Packed, Packed | None, Draw]] = {}

    def draw(self, seed: int, indices: Tensor, labels: Tensor, images: bool) -> Tensor | None:
        """Embeddings ``[B, n, C]``, or images ``[B, 3, H, W]``, of noise under a seed."""
        if not self._covered:
            return None
        key = registry.named(), images
        kept = self._draws.get(key)
        if kept is not None:
            generator, decoder, draw = kept
            if generator.usable() and (decoder is None or decoder.usable()):
                return draw(seed, indices, labels)
        made = self._make(images)
        if made is None:
            return None
        self._draws[key] = made
        return made[2](seed, indices, labels)

    def _make(self, images: bool) -> tuple[Packed, Packed | None, Draw] | None:
        if not self._runs() or "forward" in self._generator.__dict__:
            return None
        packed, decoder = packed_generator(self._generator), None
        if packed is None:
            return None
        if images:
            decoder = packed_decoder(self._tokenizer)
            if decoder is None:
                return None
        return packed, decoder, self._drawn(packed, decoder)

    def _drawn(self, packed: Packed, decoder: Packed | None) -> Draw:
        codebook = self._tokenizer.codebook
        shape = self._generator.num_tokens, codebook.shape[1]
        weights = None if decoder is None else decoder.weights
        classes, width, layers, heads, head_width, head_blocks, _ = packed.sizes
        of_decoder = 0 if decoder is None else decoder.sizes[0]
        sizes = GeneratorSizes(classes, width, layers, heads, head_width, head_blocks, of_decoder)
        if codebook.device.type == "cpu":
            return Drawn(packed.weights, weights, sizes, *shape)

        def draw(seed: int, indices: Tensor, labels: Tensor) -> Tensor:
            indices, labels = indices.to(codebook.device), labels.to(codebook.device)
            noise = image_noise(seed, indices, shape)
            return small_generator(noise, labels, packed.weights, weights, sizes)[
                decoder is not None
            ]

        return draw

    def decode(self, embeddings: Tensor) -> Tensor | None:
        """Images of embeddings."""
        if not self._runs():
            return None
        decoder = packed_decoder(self._tokenizer)
        if decoder is None:
            return None
        sizes = GeneratorSizes(decoder_width=decoder.sizes[0])
        return small_generator(embeddings, None, None, decoder.weights, sizes)[1]

    def _runs(self) -> bool:
        if not self._covered or "decode" in self._tokenizer.__dict__:
            return False
        codebook = self._tokenizer.codebook
        return codebook.dtype == torch.float32 and registry.has_kernel(
            _OP, codebook.device, codebook.dtype
        )
