"""What the LlamaGen teacher, its backbone and DD1's students share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...condition import ClassCondition
from ..attached import Attached
from ..cache import KVCache
from ..constants import Constants
from ..kernels import added
from .layers import EPS, Block, rotary_table
from .tokenizer import LlamaGenTokenizer

_LARGEST_GRID = 512  # its rotary table is memory before any weight is read


class LlamaGenTransformer(Attached):
    """What teacher and student share: the class embedding, the blocks, the norm, the codebook.

    Args:
        width, layers, heads, hidden: of the blocks; ``hidden`` is SwiGLU's inner width.
        num_classes: classes without the null class. grid: tokens along a side of the image.
        vocabulary: V. dimension: C.
        codebook: code vectors ``[V, C]``; None takes those of the attached ``tokenizer``.
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        num_classes: int,
        grid: int,
        vocabulary: int,
        dimension: int,
        codebook: Tensor | None,
    ) -> None:
        super().__init__()
        if heads < 1 or width % (4 * heads):
            raise ValueError(
                f"heads: expected heads of a multiple of 4 channels, "
                f"got {heads} over width = {width}"
            )
        if not 1 <= grid <= _LARGEST_GRID:
            wanted = "at least 1" if grid < 1 else f"at most {_LARGEST_GRID}"
            raise ValueError(f"grid: expected {wanted}, got {grid}")
        self.num_tokens, self.num_classes = grid * grid, num_classes
        self.condition = ClassCondition(num_classes)
        self.grid, self.dimension, self.vocabulary = grid, dimension, vocabulary
        self.width, self.heads, self.head_size = width, heads, width // heads
        self.cls_embedding = nn.ModuleDict(
            {"embedding_table": nn.Embedding(num_classes + 1, width)}
        )
        self.layers = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=EPS)
        tensors = {"rotary": rotary_table(grid, self.head_size)}
        if codebook is not None:
            self._check_codebook(codebook)
            tensors["codebook"] = codebook.detach().clone()
        # The rotary table and, where a model has its own, the codebook.
        self.constants = Constants(**tensors)

    def _fitting(self, tokenizer: Any) -> LlamaGenTokenizer:
        if not isinstance(tokenizer, LlamaGenTokenizer):
            raise TypeError(
                f"tokenizer: expected a LlamaGenTokenizer, got {type(tokenizer).__name__}"
            )
        expected, shape = [self.vocabulary, self.dimension], list(tokenizer.codebook.shape)
        if shape != expected:
            raise ValueError(f"tokenizer: expected codes {expected} ([V, C]), got {shape}")
        if tokenizer.grid not in (None, self.grid):
            raise ValueError(f"tokenizer: expected grid {self.grid}, got {tokenizer.grid}")
        return tokenizer

    def _check_codebook(self, codebook: Tensor) -> None:
        expected = [self.vocabulary, self.dimension]
        if list(codebook.shape) != expected:
            raise ValueError(
                f"codebook: expected shape {expected} ([V, C]), got {list(codebook.shape)}"
            )

    @property
    def data(self) -> dict[str, Tensor]:
        """Arguments of the constructor that are tensors: the model's own codebook, if it has one.

        A file keeps them beside the weights.
        """
        own = getattr(self.constants, "codebook", None)
        return {} if own is None else {"codebook": own}

    @property
    def codebook(self) -> Tensor:
        """Code vectors ``[V, C]``: the model's own, or those of the attached tokenizer."""
        if self.data:
            return self.data["codebook"]
        if self.tokenizer is None:
            raise ValueError(
                f"codebook: {type(self).__name__} has none; attach a tokenizer "
                "(model.tokenizer = ...) or pass codebook="
            )
        return self.tokenizer.codebook

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks, which released files call ``layers``."""
        return self.layers

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, to which inputs are cast."""
        return self.norm.weight.dtype

    def run_blocks(self, h: Tensor) -> Tensor:
        """``h [B, m, D]`` through every block; row 0 is the class."""
        rotation = self.constants.rotary[: h.shape[1]]
        for block in self.layers:
            h = block(h, rotation)
        return added(h)

    def new_cache(self, batch: int) -> list[KVCache]:
        """An empty cache for :meth:`run_step`, one entry per block."""
        sizes = (batch, self.heads, self.num_tokens, self.head_size)
        return [KVCache(*sizes, like=self.norm.weight) for _ in self.layers]

    def run_step(self, h: Tensor, cache: list[KVCache]) -> Tensor:
        """The next rows ``h [B, m, D]`` through every block."""
        start = cache[0].filled
        rotation = self.constants.rotary[start : start + h.shape[1]]
        for block, entry in zip(self.layers, cache, strict=True):
            h = block(h, rotation, entry)
        return added(h)
