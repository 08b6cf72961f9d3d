"""Trains the autoregressive teacher by cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models import ARTeacher, VQTokenizer
from ..config import TeacherConfig
from ..loop import Losses, Stage
from ..parallel import Parallel
from ..schedule import ramp
from ..trained import Terms, Trained


class TeacherStage(Stage):
    """Next-token loss on the tokens of ``images``, with noise on what the teacher reads.

    The codebook and the tokens are the tokenizer's at the stage's start.
    """

    def __init__(
        self,
        teacher: ARTeacher,
        tokenizer: VQTokenizer,
        images: Tensor,
        labels: Tensor,
        config: TeacherConfig,
    ) -> None:
        super().__init__("teacher", config.steps, batch=config.batch)
        self.teacher, self.tokenizer, self.config = teacher, tokenizer, config
        self.images, self.labels = images, labels
        self._tokens: Tensor | None = None
        self.trained = {"teacher": Trained(teacher, Parallel(), (0.9, 0.95), config.weight_decay)}

    def prepare(self) -> None:
        self.teacher.codebook.copy_(self.tokenizer.codebook)

    def step(self, index: int, rng: torch.Generator) -> Losses:
        config, teacher = self.config, self.teacher
        if self._tokens is None:
            self._tokens = self.tokenizer.encode(self.images)
        condition = teacher.condition
        chosen = torch.randint(len(self.images), (config.batch,), generator=rng)
        tokens, labels = self._tokens[chosen], condition.take(self.labels, chosen)
        dropped = torch.rand(config.batch, generator=rng) < config.label_dropout
        labels = condition.drop(labels, dropped)
        replaced = torch.rand(tokens.shape, generator=rng) < config.token_noise
        other = torch.randint(len(teacher.codebook), tokens.shape, generator=rng)
        embeddings = teacher.codebook[torch.where(replaced, other, tokens)]
        noise = torch.randn(embeddings.shape, generator=rng)
        embeddings = embeddings + config.embedding_noise * noise

        def loss(part: Tensor) -> tuple[Tensor, Terms]:
            logits = teacher.logits(embeddings[part], condition.take(labels, part))
            value = F.cross_entropy(logits.flatten(0, 1), tokens[part].flatten())
            return value, {"nll": value}

        rate = config.rate * ramp(index, self.steps, warmup=50)
        return self.trained["teacher"].update("teacher", rate, config.batch, loss)
