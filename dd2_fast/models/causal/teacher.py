"""A small class-conditional autoregressive teacher over the tokens of a codebook."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...ambient import constant
from ...condition import ClassCondition
from ...ops import registry
from ...ops.small_network import TeacherSizes
from ...ops.small_student import small_student
from ...ops.small_teacher import small_teacher
from ..attached import Attached
from ..checks import check_drawn, embed_tokens, start_tokens
from ..editing import Edits
from ..sampling import Choose, TokenByToken, step_seed
from ..small import Packed, packed_teacher
from .transformer import CausalTransformer

_METHODS = {"generate", "logits", "steps"}  # another of these is not what one call computes


class ARTeacher(Edits, TokenByToken, Attached):
    """``p(q_i | q_<i, y)`` by a causal transformer that reads code vectors.

    Args:
        num_tokens: n. vocabulary: V. dimension: C. num_classes: classes without the null class.
        width, layers, heads: the transformer.
        codebook: code vectors ``[V, C]``; None: zeros, to be loaded.
    """

    codebook: Tensor

    def __init__(
        self,
        *,
        num_tokens: int,
        vocabulary: int,
        dimension: int,
        num_classes: int,
        width: int = 64,
        layers: int = 3,
        heads: int = 4,
        codebook: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.num_tokens, self.num_classes = num_tokens, num_classes
        self.condition = ClassCondition(num_classes)
        codebook = torch.zeros(vocabulary, dimension) if codebook is None else codebook
        if tuple(codebook.shape) != (vocabulary, dimension):
            raise ValueError(
                f"codebook: expected shape {[vocabulary, dimension]} ([V, C]), "
                f"got {list(codebook.shape)}"
            )
        self.register_buffer("codebook", codebook.detach().clone())
        self.backbone = CausalTransformer(
            num_tokens=num_tokens,
            dimension=dimension,
            num_classes=num_classes,
            width=width,
            layers=layers,
            heads=heads,
        )
        self.config: dict[str, Any] = {**self.backbone.backbone_config, "vocabulary": vocabulary}
        self.classifier = nn.Linear(width, vocabulary)

    def logits(self, tokens_or_embeddings: Tensor, labels: Tensor) -> Tensor:
        """Teacher-forced logits ``[B, n, V]``; row ``i`` depends on tokens before ``i`` only.

        Args:
            tokens_or_embeddings: int64 tokens ``[B, n]`` or float embeddings ``[B, n, C]``.
            labels: int64 ``[B]``; ``num_classes`` is the null class.
        """
        embeddings = embed_tokens(
            tokens_or_embeddings, self.codebook, self.num_tokens, "embeddings"
        )
        self.condition.check(labels, embeddings.shape[0], self.codebook.device)
        return self.classifier(self.backbone(embeddings, labels))

    @constant
    def generate(
        self,
        labels: Tensor,
        choose: Choose,
        *,
        guided: bool = False,
        prefix: Tensor | None = None,
        drawn_steps: Sequence[bool] | None = None,
    ) -> Tensor:
        """Tokens ``[B, n]`` that ``choose(positions, logits, uncond_logits)`` picks one by one.

        Tokens that are known before the next drawn one are read by one pass.

        Args:
            labels: int64 ``[B]``.
            choose: gets a slice of one position and logits ``[B, 1, V]``; returns int64 ``[B, 1]``.
            guided: whether ``uncond_logits`` are computed too (else None).
            prefix: int64 ``[B, m]``, the first tokens, which are kept.
            drawn_steps: of each step, whether ``choose`` needs its logits; where not, it gets None
                in their place. None: all do.
        """
        self.condition.check(labels, device=self.codebook.device)
        tokens, first = start_tokens(labels, self.num_tokens, prefix, self.codebook.shape[0])
        batch = labels.shape[0]
        if guided:
            labels = self.condition.with_null(labels)
        cache, read = self.backbone.new_cache(len(labels)), 0
        for here in self.steps[first:]:
            logits = uncond_logits = None
            if drawn_steps is None or drawn_steps[here.start]:
                known, read = self.codebook[tokens[:, read : here.start]], here.start
                known = torch.cat([known, known]) if guided else known
                every = self.classifier(self.backbone.advance(known, labels, cache))[:, None]
                logits, uncond_logits = every[:batch], every[batch:] if guided else None
            tokens[:, here] = choose(here, logits, uncond_logits)
        return tokens

    def packed_for(self, op: str) -> Packed | None:
        """The weights as the kernel of ``op`` reads them; None where it does not cover the
        network, or is not there."""
        codebook = self.codebook
        if (
            type(self) is not ARTeacher
            or not _METHODS.isdisjoint(self.__dict__)
            or codebook.dtype != torch.float32
            or not registry.has_kernel(op, codebook.device, codebook.dtype)
        ):
            return None
        return packed_teacher(self)

    @constant
    def pass_at_once(
        self,
        tokens: Tensor,
        labels: Tensor,
        noise: Tensor,
        passes: int,
        flow_steps: int,
        scale: float,
        top_k: int,
        top_p: float,
    ) -> Tensor | None:
        """What :func:`dd2_fast.sampling.jacobi.jacobi` returns for ``tokens [B, n]`` and the noise
        ``[B, n, C]`` that they came from, by one call of ``small_student``; None where it does not
        cover the network."""
        packed = self.packed_for("small_student")
        if packed is None:
            return None
        self.condition.check(labels, len(tokens), self.codebook.device)
        return small_student(
            noise,
            labels,
            self.codebook,
            tokens=tokens.clamp(min=0),
            teacher=packed.weights,
            teacher_sizes=packed.sizes,
            passes=passes,
            guidance_scale=scale,
            top_k=top_k,
            top_p=top_p,
            flow_steps=flow_steps,
        )[0]

    @constant
    def draw_at_once(
        self,
        labels: Tensor,
        scale: float,
        top_k: int,
        top_p: float,
        seed: int | Tensor,
        index: Tensor | None,
        prefix: Tensor | None,
    ) -> Tensor | None:
        """What :func:`.sampling.draw_tokens` returns, by one call of ``small_teacher``; None where
        it does not cover the network."""
        codebook, packed = self.codebook, self.packed_for("small_teacher")
        if packed is None:
            return None
        self.condition.check(labels, device=codebook.device)
        tokens, first = start_tokens(labels, self.num_tokens, prefix, len(codebook))
        seeds: list[Any] = [step_seed(seed, position) for position in range(self.num_tokens)]
        if isinstance(seed, Tensor):
            of_steps = torch.stack(seeds, 1)
        else:
            of_steps = torch.tensor(seeds, dtype=torch.int64, device=codebook.device)
        drawn = small_teacher(
            tokens,
            labels,
            torch.arange(len(labels), device=codebook.device) if index is None else index,
            of_steps,
            packed.weights,
            codebook,
            TeacherSizes(*packed.sizes),
            prefix=first,
            guidance_scale=scale,
            top_k=top_k,
            top_p=top_p,
        )
        if drawn.device.type == "cpu":
            about = functools.partial(self.condition.about, labels)
            check_drawn(drawn[:, first:], first, len(codebook), index, about)
        return drawn
