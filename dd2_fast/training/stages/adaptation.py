"""Stage 0: an adapted teacher trained on tokens, or on the logits of the one it is a copy of."""

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
    """An adapted teacher that reads the code vectors of the pool: the cross-entropy of the tokens,
    or with ``target="teacher"`` the divergence from what ``source`` says after these tokens.

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
        source: Teacher | None = None,
    ) -> None:
        if config.target == "teacher" and source is None:
            raise ValueError("source: expected the teacher before adaptation, got none")
        if not backbone_of(teacher)[1].adapted:
            raise ValueError(
                "teacher: expected one of dd2_fast.models.llamagen.adapt, got one with a token "
                "table"
            )
        super().__init__("adaptation", config.steps, prepare, config.batch)
        self.teacher, self.pool, self.config, self.source = teacher, pool, config, source
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
            if config.target == "sample":
                value = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())
                return value, {"nll": value}
            assert self.source is not None, "the constructor sees to it"
            with torch.no_grad():
                wanted = self.source.logits(tokens, labels).flatten(0, 1).float().log_softmax(-1)
            found = logits.flatten(0, 1).float().log_softmax(-1)
            value = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
            return value, {"kl": value}

        rate = config.rate * ramp(index, self.steps, warmup=config.warmup)
        return teacher.update("teacher", rate, config.batch, loss)
