"""VAR's transformer: what its teachers, DD1's students and DD2's networks have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ...condition import ClassCondition
from ..attached import Attached
from ..checks import check_embeddings
from .attention import Attend, ByFlex, LowerScales, ScaleCache, one_call
from .blocks import Block, HeadNorm, modulation_layer
from .scales import Scales
from .tokenizer import VARTokenizer


class OfClass(NamedTuple):
    """What depends on the class alone.

    ``embedding [B, D]``; ``blocks``: what each block's ``forward`` takes as ``modulation``;
    ``head``: what the last norm's takes as ``condition``.
    """

    embedding: Tensor
    blocks: Sequence[Tensor]
    head: Tensor


class VARTransformer(Attached):
    """Embeddings, blocks and the last norm under the released names, of tokens at given levels.

    A tokenizer with other scales is converted to this model's when attached; weights are shared.
    """

    tokenizer: VARTokenizer | None = None

    def __init__(
        self,
        scales: Scales,
        levels: Sequence[int],
        *,
        dimension: int,
        num_classes: int,
        width: int,
        layers: int,
        heads: int,
        shared_aln: bool,
        l2_norm: bool,
    ) -> None:
        """``levels``: how many tokens there are at each level."""
        super().__init__()
        if width % heads:
            raise ValueError(f"width: expected a multiple of heads = {heads}, got {width}")
        self.scales, self.levels = scales, tuple(levels)
        self.patch_nums, self.grid = scales.sides, scales.grid
        self.num_tokens, self.num_classes = scales.num_tokens, num_classes
        self.condition = ClassCondition(num_classes)
        self.dimension, self.width, self.heads = dimension, width, heads
        self.pos_start = nn.Parameter(torch.empty(1, 1, width))
        self.pos_1LC = nn.Parameter(torch.empty(1, sum(levels), width))
        self.word_embed = nn.Linear(dimension, width)
        self.class_emb = nn.Embedding(num_classes + 1, width)
        self.lvl_embed = nn.Embedding(len(self.levels), width)
        self.shared_ada_lin = modulation_layer(width, 6) if shared_aln else None
        self.blocks = nn.ModuleList(
            Block(width, heads, shared_aln=shared_aln, l2_norm=l2_norm) for _ in range(layers)
        )
        self.head_nm = HeadNorm(width)
        self.attention = "scales"  # or "flex": how it attends where it is not prepared
        self.prepared: Any = None  # what has positions, masks and the rows of classes
        embeddings = (self.class_emb.weight, self.lvl_embed.weight)
        for weight in (self.pos_start, self.pos_1LC, *embeddings):
            nn.init.trunc_normal_(weight, std=math.sqrt(1 / width / 3))

    @property
    def codebook(self) -> Tensor:
        """The attached tokenizer's code vectors ``[V, C]``."""
        return self.attached().codebook

    def attached(self) -> VARTokenizer:
        """The tokenizer, or a RuntimeError that says how to attach one."""
        if self.tokenizer is None:
            raise RuntimeError(
                f"tokenizer: {type(self).__name__} needs VAR's tokenizer for its codebook and "
                "next-scale input, and has none; set .tokenizer, or pass tokenizer= to "
                "dd2_fast.checkpoints.load"
            )
        return self.tokenizer

    def positions(self) -> Tensor:
        """Level and position embedding of every token, ``[1, tokens, D]``."""
        return self.summed_positions() if self.prepared is None else self.prepared.positions

    def summed_positions(self) -> Tensor:
        """The same, from its parts."""
        rows = [
            row.expand(count, -1)
            for row, count in zip(self.lvl_embed.weight, self.levels, strict=True)
        ]
        return self.pos_1LC + torch.cat(rows)

    def of_class(self, labels: Tensor) -> OfClass:
        """What depends on the class alone."""
        if self.prepared is not None:
            return self.prepared.of_class(labels)
        condition = self.class_emb(labels)
        return OfClass(condition, self.modulations(condition), condition)

    def modulations(self, condition: Tensor) -> list[Tensor]:
        """What the class embedding ``[B, D]`` makes of every block's norms, one entry per block."""
        if self.shared_ada_lin is not None:
            condition = self.shared_ada_lin(condition)
        return [cast(Block, block).modulation(condition) for block in self.blocks]

    def _one_call(self, slices: Sequence[slice], *, strictly: bool) -> ByFlex | None:
        """:func:`.attention.one_call` of this network's heads."""
        weight = self.pos_1LC
        given: dict[str, Any] = dict(device=weight.device, dtype=weight.dtype)
        return one_call(
            self.attention, slices, strictly=strictly, size=self.width // self.heads, **given
        )

    def _fitting(self, tokenizer: Any) -> VARTokenizer:
        """The tokenizer at this model's scales."""
        if not isinstance(tokenizer, VARTokenizer):
            raise TypeError(f"tokenizer: expected a VARTokenizer, got {type(tokenizer).__name__}")
        vocabulary, dimension = tokenizer.codebook.shape
        if dimension != self.dimension:
            raise ValueError(
                f"tokenizer: expected codes of dimension {self.dimension}, got {dimension}"
            )
        head = getattr(self, "head", None)  # a backbone alone has none
        if isinstance(head, nn.Linear) and vocabulary != head.out_features:
            raise ValueError(f"tokenizer: expected {head.out_features} codes, got {vocabulary}")
        if tokenizer.patch_nums == self.patch_nums:
            return tokenizer
        return tokenizer.with_patch_nums(self.patch_nums)


class VARBackbone(VARTransformer):
    """Features of every token given the class and lower scales, what the classifier reads.

    Tokens are embeddings of the codebook's space, codes or not; a scale reads them through the
    tokenizer's next-scale input, so a :class:`VARTokenizer` must be attached as ``.tokenizer``.
    Differentiable in the embeddings.

    Args:
        patch_nums: sides of the scales, 1 first. dimension: C.
        num_classes: classes without the null class. width, layers, heads: the transformer.
        shared_aln: one modulation layer for all blocks (the 512 px d36).
        l2_norm: attention over unit queries and keys with a learned scale per head.

    Source: Tian et al., Visual autoregressive modeling (arXiv 2404.02905).
    """

    adapted = True  # reads any vector

    def __init__(
        self,
        *,
        patch_nums: Sequence[int],
        dimension: int = 32,
        num_classes: int = 1000,
        width: int = 1024,
        layers: int = 16,
        heads: int = 16,
        shared_aln: bool = False,
        l2_norm: bool = True,
    ) -> None:
        network: dict[str, Any] = dict(
            dimension=dimension,
            num_classes=num_classes,
            width=width,
            layers=layers,
            heads=heads,
            shared_aln=shared_aln,
            l2_norm=l2_norm,
        )
        scales = Scales.of(patch_nums)
        super().__init__(scales, [side**2 for side in scales.sides], **network)
        self.backbone_config: dict[str, Any] = {"patch_nums": list(patch_nums), **network}
        self.config: dict[str, Any] = self.backbone_config

    @property
    def apart(self) -> list[tuple[nn.Module, str]]:
        """Each block's layer of modulations, or its method where one layer serves all blocks:
        :meth:`modulations` asks for them before the blocks run."""
        if self.shared_ada_lin is not None:
            return [(block, "modulation") for block in self.blocks]
        return [(cast(Block, block).ada_lin, "forward") for block in self.blocks]

    def network_config(self, exact: bool) -> dict[str, Any]:
        """The arguments of a DD2 network's backbone that starts from this one."""
        return dict(self.backbone_config)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Features ``[B, n, D]``; those of a token depend on the class and lower scales only.

        Args:
            embeddings: ``[B, n, C]``; the last scale is not read.
            labels: int64 ``[B]``; ``num_classes`` is the null class.
        """
        device = self.pos_1LC.device
        check_embeddings("embeddings", embeddings, self.num_tokens, self.dimension, device)
        self.condition.check(labels, embeddings.shape[0], device)
        inputs = self.attached().next_inputs(embeddings)
        of_class = self.of_class(labels)
        start = self._start(of_class.embedding)
        h = torch.cat([start, self._embed(inputs)], dim=1) + self.positions()
        slices, prepared = self.scales.slices, self.prepared
        attend: Attend
        if prepared is None:
            attend = self._one_call(slices, strictly=False) or LowerScales(slices)
        else:
            attend = prepared.attend
        return self._blocks(h, of_class, [attend] * len(self.blocks))

    def _start(self, condition: Tensor) -> Tensor:
        return condition[:, None] + self.pos_start

    def _embed(self, inputs: Tensor) -> Tensor:
        return self.word_embed(inputs.to(self.word_embed.weight.dtype))

    def _blocks(self, h: Tensor, of_class: OfClass, attend: Sequence[Attend]) -> Tensor:
        for block, modulation, mix in zip(self.blocks, of_class.blocks, attend, strict=True):
            h = block(h, modulation, mix)
        return self.head_nm(h, of_class.head)

    def new_steps(self, labels: Tensor) -> ScaleSteps:
        """The backbone one scale after the other, with a KV cache, for ``labels [B]``."""
        return ScaleSteps(self, labels)


class ScaleSteps:
    """Features of one scale per call; what depends on the class alone is computed once."""

    def __init__(self, backbone: VARBackbone, labels: Tensor) -> None:
        self.backbone, self.scale = backbone, 0
        self.of_class, self.positions = backbone.of_class(labels), backbone.positions()
        like = self.of_class.embedding
        size = like.shape[1] // backbone.heads
        self.caches = [
            ScaleCache(len(labels), backbone.heads, backbone.num_tokens, size, like)
            for _ in backbone.blocks
        ]

    def __call__(self, inputs: Tensor | None) -> Tensor:
        """Features ``[B, m, D]`` of the next scale, which reads ``inputs [B, m, C]`` (None for the
        first)."""
        backbone, own = self.backbone, self.backbone.scales.slices[self.scale]
        self.scale += 1
        embedding = self.of_class.embedding
        h = backbone._start(embedding) if inputs is None else backbone._embed(inputs)
        h = h + self.positions[:, own]
        return backbone._blocks(h, self.of_class, self.caches)
