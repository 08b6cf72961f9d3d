"""Stage 0: an adapted teacher trained on tokens by the ordinary autoregressive loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...condition import Rows, condition_of
from ...losses import ImageRandom
from ...models.families import backbone_of
from ...models.family import Teacher
from ..config import AdaptationConfig
from ..loop import Losses, Stage
from ..parallel import Parallel
from ..samples.draws import Source, draw_seed
from ..schedule import ramp
from ..trained import Terms, Trained


class _Logits(nn.Module):
    """A teacher whose call gives its logits: processes average the gradients of calls.

    Every process holds all of it, however the other networks are sharded."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, vectors: Tensor, labels: Rows) -> Tensor:
        return self.teacher.logits(vectors, labels)


class AdaptationStage(Stage):
    """Next-token cross-entropy of an adapted teacher that reads the code vectors of the pool.

    Some conditions are replaced by the null one, as in the teacher's own training, so that guidance
    keeps its unconditional logits. With ``embedding_noise`` the model reads noisy vectors.
    """

    def __init__(
        self,
        teacher: Teacher,
        pool: Source,
        config: AdaptationConfig,
        prepare: Callable[[], object] | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        if not backbone_of(teacher)[1].adapted:
            raise ValueError(
                "teacher: expected one of dd2_fast.models.llamagen.adapt, got one with a token "
                "table"
            )
        super().__init__("adaptation", config.steps, prepare, config.batch)
        self.teacher, self.pool, self.config = teacher, pool, config
        logits = _Logits(teacher).requires_grad_(True)
        parallel = parallel or Parallel(device=teacher.codebook.device)
        self.trained = {"teacher": Trained(logits, parallel, config.betas, config.weight_decay)}

    def step(self, index: int, rng: torch.Generator) -> Losses:
        config, teacher = self.config, self.trained["teacher"]
        condition, codebook = condition_of(self.teacher), self.teacher.codebook
        chosen, seed = self.pool.draw(config.batch, rng), draw_seed(rng)

        def loss(part: Tensor) -> tuple[Tensor, Terms]:
            *_, tokens, labels = self.pool.take(chosen[part])
            random = ImageRandom(seed, part.to(tokens.device))
            labels = condition.drop(labels, random.uniform() < config.label_dropout)
            vectors = codebook[tokens]
            if config.embedding_noise:
                vectors = vectors + config.embedding_noise * random.normal(*vectors.shape[1:])
            logits = self.seen(logits=teacher(vectors, labels))
            value = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())
            return value, {"nll": value}

        rate = config.rate * ramp(index, self.steps, warmup=config.warmup)
        return teacher.update("teacher", rate, config.batch, loss)
