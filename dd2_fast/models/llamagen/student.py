"""DD1's one- and two-step LlamaGen students (arXiv 2412.17153)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ops import add_norm_modulate
from ..checks import check_embeddings
from ..kernels import has_fused_norm
from ..sampling import likeliest_codes
from .transformer import LlamaGenTransformer

EPSILON = 1e-6


class ContinuousHead(nn.Module):
    """``Linear(LN(h) (1 + scale) + shift)``, modulated by a table plus the class embedding."""

    def __init__(self, width: int, dimension: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))
        self.linear = nn.Linear(width, dimension)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Code vectors ``[B, m, C]`` of ``h [B, m, D]`` and ``condition [B, 1, D]``."""
        shift, scale = (self.scale_shift_table + condition).chunk(2, dim=1)
        if has_fused_norm(h):
            _, y = add_norm_modulate(h, scale=scale, shift=shift, eps=EPSILON)
        else:
            y = torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=EPSILON), 1 + scale)
        return self.linear(y)


class DD1LlamaGenStudent(LlamaGenTransformer):
    """Every token from noise in one causal pass, or in two, under the released parameter names.

    The transformer reads ``[class embedding, Linear(x_1), ..., Linear(x_n)]``, each plus an
    embedding that says whether the position is done (the class and the tokens that an earlier step
    has made) or still noise; position ``i`` sees itself. Tokens before ``split`` are the code of
    the classifier's largest logit, those from ``split`` on the output of the continuous head. The
    second step keeps the tokens before ``second_step``, puts the same noise back from there on, and
    repeats.

    Args:
        width, layers, heads, hidden: the transformer; ``hidden`` is SwiGLU's inner width.
        num_classes: classes without the null class. grid: tokens along a side of the image.
        vocabulary: V. dimension: C.
        split: first token of the continuous head; published: 80 for LlamaGen-B, 130 for L.
        second_step: first token of the second step; None takes ``split``. Published: 80 for both.
        codebook: code vectors ``[V, C]``; None: those of the attached ``tokenizer``.

    ``tokenizer`` is attached, not a submodule: nothing moves, saves or trains it with the student.
    """

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
        split: int,
        second_step: int | None = None,
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
        second_step = split if second_step is None else second_step
        for name, value in (("split", split), ("second_step", second_step)):
            if not 0 <= value <= self.num_tokens:
                raise ValueError(f"{name}: expected 0 to {self.num_tokens} tokens, got {value}")
        self.config: dict[str, Any] = {**sizes, "split": split, "second_step": second_step}
        self.split, self.second_step = split, second_step
        self.tok_embeddings = nn.Linear(dimension, width)
        self.n_d_embed = nn.Embedding(2, width)
        self.output = nn.Linear(width, vocabulary, bias=False)
        self.final_layer_conti = ContinuousHead(width, dimension)

    def forward(self, noise: Tensor, labels: Tensor, steps: int = 1) -> Tensor:
        """Embeddings ``[B, n, C]`` of ``noise [B, n, C]`` and int64 ``labels [B]``.

        Args:
            noise: standard normal. labels: classes. steps: 1 or 2 passes.
        """
        device = self.norm.weight.device
        check_embeddings("noise", noise, self.num_tokens, self.dimension, device)
        self.condition.check(labels, noise.shape[0], device)
        if isinstance(steps, bool) or steps not in (1, 2):
            raise ValueError(f"steps: expected 1 or 2, got {steps!r}")
        x = self._pass(noise, labels, 0)
        if steps == 1:
            return x
        kept = x[:, : self.second_step]
        renewed = noise[:, self.second_step :].to(x.dtype)
        again = self._pass(torch.cat([kept, renewed], dim=1), labels, self.second_step)
        return torch.cat([kept, again], dim=1)

    def _pass(self, x: Tensor, labels: Tensor, done: int) -> Tensor:
        """The tokens from ``done`` on, given those before it and noise: ``[B, n - done, C]``."""
        start = self.cls_embedding["embedding_table"](labels)[:, None]
        h = torch.cat([start, self.tok_embeddings(x.to(self.dtype))], dim=1)
        finished = torch.arange(h.shape[1], device=h.device) <= done
        h = self.run_blocks(h + self.n_d_embed(finished.long()))[:, 1:]
        split = max(self.split, done)
        codebook = self.codebook
        codes = likeliest_codes(self.output(self.norm(h[:, done:split])), codebook)
        vectors = self.final_layer_conti(h[:, split:], start)
        return torch.cat([codes, vectors.to(codebook.dtype)], dim=1)
