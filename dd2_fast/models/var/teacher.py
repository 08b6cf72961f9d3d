"""VAR's teachers: the distribution of every scale's codes given the scales below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...ambient import constant
from ...ops.checks import check_number
from ..checks import check_tokens, embed_tokens, start_tokens
from ..editing import Edits
from ..sampling import Choose, sample_tokens
from .backbone import VARBackbone


class VARTeacher(Edits, VARBackbone):
    """``p(tokens of scale k | lower scales, y)`` by VAR's transformer and a Linear classifier.

    ``head(backbone features)`` are the logits. A :class:`VARTokenizer` must be attached as
    ``.tokenizer``: it has the codebook and makes the next scale's input.

    Args:
        vocabulary: V. The others are :class:`VARBackbone`'s.
    """

    unguided = 0.0

    def __init__(
        self,
        *,
        patch_nums: Sequence[int],
        vocabulary: int = 4096,
        dimension: int = 32,
        num_classes: int = 1000,
        width: int = 1024,
        layers: int = 16,
        heads: int = 16,
        shared_aln: bool = False,
        l2_norm: bool = True,
    ) -> None:
        super().__init__(
            patch_nums=patch_nums,
            dimension=dimension,
            num_classes=num_classes,
            width=width,
            layers=layers,
            heads=heads,
            shared_aln=shared_aln,
            l2_norm=l2_norm,
        )
        self.config: dict[str, Any] = {**self.backbone_config, "vocabulary": vocabulary}
        self.head = nn.Linear(width, vocabulary)

    def logits(self, tokens_or_embeddings: Tensor, labels: Tensor) -> Tensor:
        """Teacher-forced logits ``[B, n, V]``; a token's depend on lower scales only.

        Args:
            tokens_or_embeddings: int64 tokens ``[B, n]`` or float embeddings ``[B, n, C]``.
            labels: int64 ``[B]``; ``num_classes`` is the null class.
        """
        embeddings = embed_tokens(
            tokens_or_embeddings, self.codebook, self.num_tokens, "embeddings"
        )
        return self.head(self(embeddings, labels))

    def guidance_scale(self, cfg: float) -> Tensor | float:
        """``s = 1 + cfg k / (S-1)`` of ``l_uncond + s (l_cond - l_uncond)`` for the scale ``k`` of
        each token, ``[n]``; 1.0 for ``cfg = 0``, no guidance."""
        check_number("cfg", cfg)
        if cfg == 0:
            return 1.0
        weight = self.pos_1LC
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return 1 + cfg * torch.tensor(self.scales.ramp(), dtype=dtype, device=weight.device)

    @property
    def steps(self) -> list[slice]:
        """The positions of each step: one scale."""
        return list(self.scales.slices)

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
        """Tokens ``[B, n]`` that ``choose`` picks scale by scale, with a KV cache.

        Args:
            labels: int64 ``[B]``.
            choose: gets the tokens' positions, a slice of ``m``, their logits ``[B, m, V]`` and
                the unconditional ones; returns int64 ``[B, m]``.
            guided: whether unconditional logits are computed too, in the same batch (else None).
            prefix: int64 ``[B, m]``, the tokens of the first scales, which are kept.
            drawn_steps: of each step, whether ``choose`` needs its logits; where not, it gets None
                in their place. None: all do.
        """
        self.condition.check(labels, device=self.pos_1LC.device)
        quantizer, codebook = self.attached().quantize, self.codebook
        batch, last = len(labels), self.scales.count - 1
        tokens, first = start_tokens(labels, self.num_tokens, prefix, codebook.shape[0])
        if first not in (0, *(own.stop for own in self.steps)):
            raise ValueError(f"prefix: expected whole scales, got {first} tokens")
        f_hat = inputs = None
        if guided:
            labels = self.condition.with_null(labels)
        steps = self.new_steps(labels)
        drawn = [drawn_steps is None or drawn_steps[k] for k in range(last + 1)]
        for k, own in enumerate(self.scales.slices):
            features = steps(inputs) if any(drawn[k:]) else None
            if own.start >= first:
                logits = uncond_logits = None
                if features is not None and drawn[k]:
                    every = self.head(features)
                    logits, uncond_logits = every[:batch], every[batch:] if guided else None
                chosen = choose(own, logits, uncond_logits)
                check_tokens(chosen, own.stop - own.start, codebook.shape[0])
                tokens[:, own] = chosen
            if k < last:
                f_hat = quantizer.add_scale(f_hat, codebook[tokens[:, own]], k)
                inputs = quantizer.next_input(f_hat, k + 1)
                inputs = torch.cat([inputs, inputs]) if guided else inputs
        return tokens

    def sample(
        self, labels: Tensor, *, cfg: float, top_k: int = 0, top_p: float = 1.0, seed: int = 0
    ) -> Tensor:
        """Tokens ``[B, n]`` drawn scale by scale.

        Image ``i`` of a call depends on the seed, ``i`` and its label, not on how many follow it.

        Args:
            labels: int64 ``[B]``. cfg: guidance at the last scale, rising from none at the first;
                0 is none. top_k: logits to keep, 0 keeps all. top_p: mass to keep, 1.0 keeps all.
            seed: of the draws, an int of 64 bits; the caller's autocast has no part in them.

        Raises NotFiniteError, a ValueError, if the logits of an image have a NaN or infinity.
        """
        return sample_tokens(self, labels, cfg=cfg, top_k=top_k, top_p=top_p, seed=seed)
