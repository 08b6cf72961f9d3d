"""The LlamaGen teacher: class-conditional autoregressive logits over a raster of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...ambient import constant
from ..checks import check_tokens, start_tokens
from ..editing import Edits
from ..sampling import Choose, TokenByToken
from .backbone import LlamaGenBackbone


class LlamaGenTeacher(Edits, TokenByToken, LlamaGenBackbone):
    """``p(q_i | q_<i, y)`` by LlamaGen (arXiv 2406.06525), under the released parameter names.

    The arguments are those of :class:`LlamaGenBackbone`.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.output = nn.Linear(self.config["width"], self.vocabulary, bias=False)

    def head(self, features: Tensor) -> Tensor:
        """Logits ``[*, V]`` of features ``[*, D]``."""
        return self.output(features)

    def logits(self, tokens_or_embeddings: Tensor, labels: Tensor) -> Tensor:
        """Teacher-forced logits ``[B, n, V]``; row ``i`` depends on tokens before ``i`` only.

        Arguments and errors are those of :meth:`LlamaGenBackbone.forward`.
        """
        return self.head(self(tokens_or_embeddings, labels))

    @constant
    def generate(
        self,
        labels: Tensor,
        choose: Choose,
        *,
        guided: bool = False,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """Tokens ``[B, n]`` that ``choose(positions, logits, uncond_logits)`` picks one by one.

        Args:
            labels: int64 ``[B]``.
            choose: gets the positions as a slice of one and logits ``[B, 1, V]``; returns int64
                tokens ``[B, 1]``.
            guided: whether ``uncond_logits`` are computed too (else None), in the same batch.
            prefix: int64 ``[B, m]``, the first tokens, which are kept.
        """
        self.condition.check(labels, device=self.norm.weight.device)
        tokens, first = start_tokens(labels, self.num_tokens, prefix, self.vocabulary)
        batch = labels.shape[0]
        if guided:
            labels = self.condition.with_null(labels)
        cache = self.new_cache(len(labels))
        h = self.cls_embedding["embedding_table"](labels)[:, None]
        if first:
            known = self.embed_codes(tokens[:, :first].clamp(min=0))
            h = torch.cat([h, torch.cat([known, known]) if guided else known], dim=1)
        for here in self.steps[first:]:
            logits = self.head(self.norm(self.run_step(h, cache)[:, -1:]))
            chosen = choose(here, logits[:batch], logits[batch:] if guided else None)
            check_tokens(chosen, 1, self.vocabulary)
            tokens[:, here] = chosen
            # Where logits were not finite a token is -1, which a table on a GPU must not read.
            h = self.embed_codes(tokens[:, here].clamp(min=0))
            h = torch.cat([h, h]) if guided else h
        return tokens
