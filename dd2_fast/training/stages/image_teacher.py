"""Trains an autoregressive teacher on the tokens of a user's images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...losses import ImageRandom
from ...models.families import backbone_of
from ..image_config import ImageTeacherConfig
from ..loop import Losses, Stage
from ..parallel import Parallel
from ..samples.draws import draw_seed
from ..samples.image_batches import ImageBatches
from ..schedule import cosine, update_ema
from ..trained import Terms, Trained


class _Logits(nn.Module):
    """A teacher whose call gives logits, which is what the processes' gradients are averaged by."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher: Any = teacher

    def forward(self, read: Tensor, labels: Tensor) -> Tensor:
        logits: Tensor = self.teacher.logits(read, labels)
        return logits


class ImageTeacherStage(Stage):
    """Cross-entropy of the images' tokens given those before them and the class.

    Some labels become the null class, so that the teacher can be guided; some of the codes that it
    reads are replaced, and all of them noisy, so that it can go on from tokens of a generator; one
    that reads tokens by a table gets noise when it is adapted. At the end the teacher's weights
    are those of the running average.

    Args:
        teacher: with its frozen tokenizer attached. average: another one, of the same sizes.
        batches: of images. config: settings. prepare: called before the first step.
    """

    def __init__(
        self,
        teacher: Any,
        average: Any,
        batches: ImageBatches,
        config: ImageTeacherConfig,
        prepare: Callable[[], object] | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        super().__init__("teacher", config.steps, prepare, config.batch)
        self.teacher, self.average = teacher, average.requires_grad_(False)
        self.batches, self.config = batches, config
        parallel = parallel or Parallel(device=next(teacher.parameters()).device)
        teacher.requires_grad_(True)
        network = _Logits(teacher)
        self.trained = {"teacher": Trained(network, parallel, config.betas, config.weight_decay)}

    def prepare(self) -> None:
        super().prepare()
        self.average.load_state_dict(self.teacher.state_dict())

    def step(self, index: int, rng: torch.Generator) -> Losses:
        config, teacher = self.config, self.trained["teacher"]
        seed, tokenizer = draw_seed(rng), self.teacher.tokenizer
        codebook = tokenizer.codebook
        classes, vocabulary = self.teacher.num_classes, len(codebook)
        adapted = backbone_of(self.teacher)[1].adapted

        def loss(part: Tensor) -> tuple[Tensor, Terms]:
            images, labels = self.batches.take(index, part)
            tokens = tokenizer.encode(images)
            random = ImageRandom(seed, part.to(images.device))
            labels = labels.where(random.uniform() >= config.label_dropout, classes)
            replaced = random.uniform(tokens.shape[1]) < config.token_noise
            other = (random.uniform(tokens.shape[1]) * vocabulary).long().clamp(max=vocabulary - 1)
            read = torch.where(replaced, other, tokens)
            read = codebook[read] if adapted else read
            if config.embedding_noise and adapted:
                read = read + config.embedding_noise * random.normal(*read.shape[1:])
            logits = self.seen(logits=teacher(read, labels))
            value = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())
            return value, {"nll": value}

        rate = config.rate * cosine(
            index, self.steps, warmup=min(config.warmup, self.steps // 4), floor=config.floor
        )
        terms = teacher.update("teacher", rate, config.batch, loss)
        update_ema(self.average, self.teacher, index, config.ema_decay)
        return terms

    def finish(self) -> None:
        self.teacher.load_state_dict(self.average.state_dict())
        self.teacher.requires_grad_(False)
