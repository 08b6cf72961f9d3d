"""LlamaGen's causal transformer up to its classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...ops import nearest_code
from ..checks import check_embeddings, check_tokens
from .adapter import EmbeddingMLP
from .transformer import LlamaGenTransformer


class LlamaGenBackbone(LlamaGenTransformer):
    """Features ``f_i`` that depend on the class and on tokens before ``i`` only.

    The input is ``[class embedding, e_1, ..., e_{n-1}]`` with rotary positions over the grid; the
    features are what the teacher's classifier reads. A released model embeds tokens by a table, so
    it reads codes only; :func:`adapt` replaces the table by an MLP of the code vector, after which
    any vector can be read and gradients flow to it.

    Args:
        width, layers, heads, hidden: the transformer; ``hidden`` is SwiGLU's inner width.
        num_classes: classes without the null class. grid: tokens along a side of the image.
        vocabulary: V. dimension: C.
        adapter_width: hidden width of the MLP of code vectors; None: the released token table.
        adapter_codes: whether that MLP has a unit per code as well.
        codebook: code vectors ``[V, C]``; None: those of the attached ``tokenizer``.
    """

    apart: Sequence[tuple[nn.Module, str]] = ()

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        num_classes: int = 1000,
        grid: int = 16,
        vocabulary: int = 16384,
        dimension: int = 8,
        adapter_width: int | None = None,
        adapter_codes: bool = False,
        codebook: Tensor | None = None,
    ) -> None:
        sizes: dict[str, Any] = dict(
            width=width,
            layers=layers,
            heads=heads,
            hidden=hidden,
            num_classes=num_classes,
            grid=grid,
            vocabulary=vocabulary,
            dimension=dimension,
        )
        super().__init__(**sizes, codebook=codebook)
        self.backbone_config: dict[str, Any] = {
            **sizes,
            "adapter_width": adapter_width,
            "adapter_codes": adapter_codes,
        }
        self.config: dict[str, Any] = self.backbone_config
        self.tok_embeddings: nn.Module = (
            nn.Embedding(vocabulary, width)
            if adapter_width is None
            else EmbeddingMLP(dimension, adapter_width, width, vocabulary if adapter_codes else 0)
        )

    @property
    def adapted(self) -> bool:
        """Whether code vectors are embedded by an MLP, so that any vector can be read."""
        return isinstance(self.tok_embeddings, EmbeddingMLP)

    def network_config(self, exact: bool) -> dict[str, Any]:
        """The arguments of a DD2 network's backbone that starts from this one.

        Args:
            exact: whether to keep the units per code, if there are any.

        Raises:
            ValueError: tokens are embedded by a table.
        """
        if not self.adapted:
            raise ValueError(
                "teacher: expected one that reads any vector, got one with a token table; "
                "dd2_fast.models.llamagen.adapt(teacher) makes it"
            )
        config = dict(self.backbone_config)
        return config if exact else {**config, "adapter_codes": False}

    def forward(self, tokens_or_embeddings: Tensor, labels: Tensor) -> Tensor:
        """Features ``[B, n, D]``; the last token is not read.

        Args:
            tokens_or_embeddings: int64 tokens ``[B, n]`` or float embeddings ``[B, n, C]``; before
                adaptation the embeddings must be rows of the codebook, without gradient.
            labels: int64 ``[B]``; ``num_classes`` is the null class.

        Raises:
            TypeError, ValueError: a wrong type, shape or value, or embeddings that need
                :func:`adapt` first.
        """
        value = tokens_or_embeddings
        floating = isinstance(value, Tensor) and value.is_floating_point()
        device = self.norm.weight.device
        if floating:
            check_embeddings("embeddings", value, self.num_tokens, self.dimension, device)
        else:
            check_tokens(value, self.num_tokens, self.vocabulary, device)
        self.condition.check(labels, value.shape[0], device)
        start = self.cls_embedding["embedding_table"](labels)[:, None]
        rest = self.embed_vectors(value[:, :-1]) if floating else self.embed_codes(value[:, :-1])
        return self.norm(self.run_blocks(torch.cat([start, rest], dim=1)))

    def embed_codes(self, tokens: Tensor) -> Tensor:
        """What the blocks read of int64 tokens ``[*]``: ``[*, D]``."""
        return self.tok_embeddings(self.codebook[tokens] if self.adapted else tokens)

    def embed_vectors(self, vectors: Tensor) -> Tensor:
        """What the blocks read of code vectors ``[*, C]``: ``[*, D]``."""
        if self.adapted:
            return self.tok_embeddings(vectors)
        if vectors.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "embeddings: a token table has no gradient in them; "
                "dd2_fast.models.llamagen.adapt(teacher) gives a model that has"
            )
        tokens = nearest_code(vectors, self.codebook)
        codes = self.codebook[tokens]
        tolerance = 4 * torch.finfo(vectors.dtype).eps * codes.norm(dim=-1)
        if not bool(((vectors - codes).norm(dim=-1) <= tolerance).all()):
            raise ValueError(
                "embeddings: a token table reads rows of the codebook only, got other vectors; "
                "dd2_fast.models.llamagen.adapt(teacher) gives a model that reads them"
            )
        return self.tok_embeddings(tokens)
