"""A teacher that is a table: the exact case, for proofs and tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...ambient import constant
from ...condition import ClassCondition
from ...ops import nearest_code
from ..attached import Attached
from ..checks import embed_tokens, start_tokens
from ..sampling import Choose, TokenByToken


class TableTeacher(TokenByToken, Attached):
    """The autoregressive factorisation of a joint probability table ``[V] * n``.

    It has one class (label 0); the null class has the same distribution. Continuous embeddings
    are read as their nearest codes. A prefix of probability zero is followed uniformly.

    Args:
        num_tokens: n. vocabulary: V. dimension: C.
        joint: non-negative weights ``[V, ..., V]`` (n axes); None: uniform, to be loaded.
        codebook: ``[V, C]``; None: zeros, to be loaded.
    """

    table: Tensor
    codebook: Tensor
    num_classes = 1
    condition = ClassCondition(num_classes)

    def __init__(
        self,
        *,
        num_tokens: int,
        vocabulary: int,
        dimension: int,
        joint: Tensor | None = None,
        codebook: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = dict(
            num_tokens=num_tokens, vocabulary=vocabulary, dimension=dimension
        )
        self.num_tokens = num_tokens
        self._cached: tuple[int, list[Tensor]] | None = None
        shape = [vocabulary] * num_tokens
        uniform = joint is None
        joint = torch.ones(shape) if joint is None else joint
        if list(joint.shape) != shape:
            raise ValueError(f"joint: expected shape {shape} ([V] * n), got {list(joint.shape)}")
        # The uniform table may be without memory, to be filled from a file.
        if not uniform and (not bool((joint >= 0).all()) or not float(joint.sum()) > 0):
            raise ValueError("joint: expected non-negative weights with a positive sum")
        codebook = torch.zeros(vocabulary, dimension) if codebook is None else codebook
        if list(codebook.shape) != [vocabulary, dimension]:
            raise ValueError(
                f"codebook: expected shape {[vocabulary, dimension]} ([V, C]), "
                f"got {list(codebook.shape)}"
            )
        self.register_buffer("table", (joint.double() / joint.double().sum()).float())
        self.register_buffer("codebook", codebook.detach().clone())

    def joint(self) -> Tensor:
        """The joint distribution ``[V] * n`` (float64, sums to one)."""
        table = self.table.double()
        return table / table.sum()

    def _conditionals(self) -> list[Tensor]:
        """Log-probabilities ``[V**i, V]`` of token ``i`` given the prefix's row-major index."""
        if self._cached is not None and self._cached[0] == self.table._version:
            return self._cached[1]
        vocabulary = self.codebook.shape[0]
        rows = []
        for i in range(self.num_tokens):
            weight = self.joint().reshape(vocabulary**i, vocabulary, -1).sum(-1)
            total = weight.sum(-1, keepdim=True)
            uniform = torch.full_like(weight, 1 / vocabulary)
            rows.append(torch.where(total > 0, weight / total, uniform).log().float())
        self._cached = (self.table._version, rows)
        return rows

    def logits(self, tokens_or_embeddings: Tensor, labels: Tensor) -> Tensor:
        """Log-probabilities ``[B, n, V]``; row ``i`` depends on tokens before ``i`` only."""
        embeddings = embed_tokens(
            tokens_or_embeddings, self.codebook, self.num_tokens, "embeddings"
        )
        self.condition.check(labels, embeddings.shape[0], self.codebook.device)
        tokens = nearest_code(embeddings, self.codebook)
        prefix = torch.zeros_like(tokens[:, 0])
        rows = []
        for i, log_probability in enumerate(self._conditionals()):
            rows.append(log_probability[prefix])
            prefix = prefix * self.codebook.shape[0] + tokens[:, i]
        return torch.stack(rows, dim=1)

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
        """Tokens ``[B, n]``; arguments as of :meth:`ARTeacher.generate`."""
        self.condition.check(labels, device=self.codebook.device)
        vocabulary = self.codebook.shape[0]
        tokens, first = start_tokens(labels, self.num_tokens, prefix, vocabulary)
        place = torch.zeros_like(labels)
        for here, log_probability in zip(self.steps, self._conditionals(), strict=True):
            if here.start >= first:
                row = None
                if drawn_steps is None or drawn_steps[here.start]:
                    row = log_probability[place][:, None]
                tokens[:, here] = choose(here, row, row if guided else None)
            place = place * vocabulary + tokens[:, here.start]
        return tokens
