"""The LlamaGen teacher: class-conditional autoregressive logits over a raster of tokens."""

from __future__ import annotations

from collections.abc import Sequence
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
        drawn_steps: Sequence[bool] | None = None,
    ) -> Tensor:
        """Tokens ``[B, n]`` that ``choose(positions, logits, uncond_logits)`` picks one by one.

        Tokens that are known before the next drawn one are read by one pass.

        Args:
            labels: int64 ``[B]``.
            choose: gets the positions as a slice of one and logits ``[B, 1, V]``; returns int64
                tokens ``[B, 1]``.
            guided: whether ``uncond_logits`` are computed too (else None), in the same batch.
            prefix: int64 ``[B, m]``, the first tokens, which are kept.
            drawn_steps: of each step, whether ``choose`` needs its logits; where not, it gets None
                in their place. None: all do.
        """
        self.condition.check(labels, device=self.norm.weight.device)
        tokens, first = start_tokens(labels, self.num_tokens, prefix, self.vocabulary)
        batch = labels.shape[0]
        if guided:
            labels = self.condition.with_null(labels)
        cache, read = self.new_cache(len(labels)), 0
        rows = [self.cls_embedding["embedding_table"](labels)[:, None]]
        for here in self.steps[first:]:
            logits = uncond_logits = None
            if drawn_steps is None or drawn_steps[here.start]:
                if here.start > read:
                    # Where logits were not finite a token is -1, which no table on a GPU may read.
                    h = self.embed_codes(tokens[:, read : here.start].clamp(min=0))
                    rows.append(torch.cat([h, h]) if guided else h)
                h, rows, read = torch.cat(rows, 1), [], here.start
                every = self.head(self.norm(self.run_step(h, cache)[:, -1:]))
                logits, uncond_logits = every[:batch], every[batch:] if guided else None
            chosen = choose(here, logits, uncond_logits)
            check_tokens(chosen, 1, self.vocabulary)
            tokens[:, here] = chosen
        return tokens
