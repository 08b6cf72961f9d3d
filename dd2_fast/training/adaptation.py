"""Stage 0 (METHOD 3): an adapted teacher trained on tokens by the ordinary autoregressive loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..losses import ImageRandom, TeacherScore
from ..models import LlamaGenTeacher
from .config import AdaptationConfig
from .loop import Losses, Stage
from .parallel import Parallel
from .schedule import ramp
from .stages import draw_seed
from .trained import Terms, Trained


class TokenPool(nn.Module):
    """Sequences ``tokens [N, n]`` and their ``labels [N]``, a part of the run's saved state."""

    tokens: Tensor
    labels: Tensor

    def __init__(self, count: int, num_tokens: int) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.zeros(count, num_tokens, dtype=torch.int32))
        self.register_buffer("labels", torch.zeros(count, dtype=torch.int64))

    @classmethod
    def of(cls, tokens: Tensor, labels: Tensor) -> TokenPool:
        """A pool of given int64 ``tokens [N, n]`` and ``labels [N]``."""
        if tokens.ndim != 2 or labels.shape != tokens.shape[:1]:
            raise ValueError(
                "tokens, labels: expected shapes [N, n] and [N], "
                f"got {list(tokens.shape)} and {list(labels.shape)}"
            )
        pool = cls(*tokens.shape)
        pool.tokens, pool.labels = tokens.int(), labels.clone()
        return pool

    def draw(self, size: int, rng: torch.Generator) -> Tensor:
        """int64 ``[size]``, which sequences make a random batch."""
        return torch.randint(len(self.labels), (size,), generator=rng)

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """int64 ``tokens`` and ``labels`` of the chosen sequences."""
        chosen = chosen.to(self.labels.device)
        return self.tokens[chosen].long(), self.labels[chosen]


class TeacherSamplesStage(Stage):
    """Fills the pool with samples of a teacher, drawn with the settings of ``score``."""

    def __init__(self, pool: TokenPool, score: TeacherScore, batch: int) -> None:
        size = min(batch, len(pool.labels))
        super().__init__("samples", -(-len(pool.labels) // size), batch=size)
        self.pool, self.score, self.size = pool, score, size

    def step(self, index: int, rng: torch.Generator) -> Losses:
        pool, score = self.pool, self.score
        part = slice(index * self.size, (index + 1) * self.size)
        labels = torch.randint(score.teacher.num_classes, pool.labels[part].shape, generator=rng)
        labels = labels.to(pool.labels.device)
        seed = int(torch.randint(2**62, (), generator=rng))
        tokens = score.teacher.sample(
            labels, cfg=score.cfg, top_k=score.top_k, top_p=score.top_p, seed=seed
        )
        pool.tokens[part], pool.labels[part] = tokens.int(), labels
        return {}


class _Logits(nn.Module):
    """A teacher whose call gives logits, which is what the processes' gradients are averaged by.

    Every process has all of it, whatever the sharding of the other networks."""

    def __init__(self, teacher: LlamaGenTeacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        return self.teacher.logits(vectors, labels)


class AdaptationStage(Stage):
    """Next-token cross-entropy of an adapted teacher that reads the code vectors of the pool.

    Labels are dropped to the null class as in the teacher's own training, so that guidance still
    has its unconditional logits. With ``embedding_noise`` the model reads noisy vectors.
    """

    def __init__(
        self,
        teacher: LlamaGenTeacher,
        pool: Any,
        config: AdaptationConfig,
        prepare: Callable[[], object] | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        if not teacher.adapted:
            raise ValueError(
                "teacher: expected one of dd2_fast.models.llamagen.adapt, got one with a token "
                "table"
            )
        super().__init__("adaptation", config.steps, prepare, config.batch)
        self.teacher, self.pool, self.config = teacher.requires_grad_(True), pool, config
        parallel = parallel or Parallel(device=teacher.codebook.device)
        self.trained = {
            "teacher": Trained(_Logits(teacher), parallel, config.betas, config.weight_decay)
        }

    def step(self, index: int, rng: torch.Generator) -> Losses:
        config, teacher = self.config, self.trained["teacher"]
        classes, codebook = self.teacher.num_classes, self.teacher.codebook
        chosen, seed = self.pool.draw(config.batch, rng), draw_seed(rng)

        def loss(part: Tensor) -> tuple[Tensor, Terms]:
            *_, tokens, labels = self.pool.take(chosen[part])
            random = ImageRandom(seed, part.to(labels.device))
            labels = labels.where(random.uniform() >= config.label_dropout, classes)
            vectors = codebook[tokens]
            if config.embedding_noise:
                vectors = vectors + config.embedding_noise * random.normal(*vectors.shape[1:])
            logits = self.seen(logits=teacher(vectors, labels))
            value = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())
            return value, {"nll": value}

        rate = config.rate * ramp(index, self.steps, warmup=config.warmup)
        return teacher.update("teacher", rate, config.batch, loss)
