"""Small generators and their decoder by one kernel, where it covers them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..models import DD2Generator
from ..models.causal.tokenizer import VQTokenizer
from ..models.causal.transformer import CausalTransformer
from ..models.small import Packed, packed_decoder, packed_generator
from ..ops import registry
from ..ops.small_generator.native import Drawn
from .noise import image_noise


class AtOnce:
    """A generator and its tokenizer's decoder by ``small_generator``'s kernel, noise included.

    None is drawn where the kernel does not cover the networks as they are: of another kind or
    size, not in float32, with hooks, or where nothing is compiled.
    """

    def __init__(self, generator: Any, tokenizer: Any) -> None:
        self._generator, self._tokenizer = generator, tokenizer
        self._covered = (
            type(generator) is DD2Generator
            and type(generator.backbone) is CausalTransformer
            and type(tokenizer) is VQTokenizer
        )
        self._draws: dict[tuple[str, bool], tuple[Packed, Packed | None, Drawn]] = {}

    def draw(
        self, seed: int | Tensor, indices: Tensor, labels: Tensor, images: bool
    ) -> Tensor | None:
        """Embeddings ``[B, n, C]``, or images ``[B, 3, H, W]``, of noise under a seed, or under
        int64 seeds ``[B]``."""
        if not self._covered:
            return None
        key = registry.named(), images
        kept = self._draws.get(key)
        if kept is not None:
            generator, decoder, draw = kept
            if generator.usable() and (decoder is None or decoder.usable()):
                return self._of_noise(draw, seed, indices, labels)
        made = self._make(images)
        if made is None:
            return None
        self._draws[key] = made
        return self._of_noise(made[2], seed, indices, labels)

    def _of_noise(self, draw: Drawn, seed: int | Tensor, indices: Tensor, labels: Tensor) -> Tensor:
        if not isinstance(seed, Tensor):
            return draw(seed, indices, labels)
        codebook = self._tokenizer.codebook
        shape = self._generator.num_tokens, codebook.shape[1]
        noise = image_noise(seed.to(codebook.device), indices.to(codebook.device), shape)
        return draw(0, indices, labels, noise)

    def _make(self, images: bool) -> tuple[Packed, Packed | None, Drawn] | None:
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

    def _drawn(self, packed: Packed, decoder: Packed | None) -> Drawn:
        codebook = self._tokenizer.codebook
        shape = self._generator.num_tokens, codebook.shape[1]
        weights = None if decoder is None else decoder.weights
        sizes = packed.sizes
        if decoder is not None:
            sizes = sizes._replace(decoder_width=decoder.sizes.decoder_width)
        module = registry.resolve("small_generator", "", codebook.device, codebook.dtype)
        return Drawn(module.launcher(codebook.device), packed.weights, weights, sizes, *shape)

    def _runs(self) -> bool:
        if not self._covered or "decode" in self._tokenizer.__dict__:
            return False
        codebook = self._tokenizer.codebook
        return codebook.dtype == torch.float32 and registry.has_kernel(
            "small_generator", codebook.device, codebook.dtype
        )
