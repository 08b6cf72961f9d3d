"""Trains the classifier that judges images, on the user's labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..image_config import ImageClassifierConfig
from ..loop import Losses, Stage
from ..parallel import Parallel
from ..samples.image_batches import ImageBatches
from ..schedule import cosine
from ..trained import Terms, Trained


class ImageClassifierStage(Stage):
    """Cross-entropy on the images to train on, with smoothed labels."""

    def __init__(
        self,
        classifier: Any,
        batches: ImageBatches,
        config: ImageClassifierConfig,
        parallel: Parallel | None = None,
    ) -> None:
        super().__init__("classifier", config.steps, batch=config.batch)
        self.classifier, self.batches, self.config = (
            classifier.requires_grad_(True),
            batches,
            config,
        )
        parallel = parallel or Parallel(device=next(classifier.parameters()).device)
        self.trained = {
            "classifier": Trained(classifier, parallel, (0.9, 0.99), config.weight_decay)
        }

    def step(self, index: int, rng: torch.Generator) -> Losses:
        def loss(part: Tensor) -> tuple[Tensor, Terms]:
            images, labels = self.batches.take(index, part)
            logits = self.seen(logits=self.trained["classifier"](images))
            value = F.cross_entropy(logits.float(), labels, label_smoothing=0.05)
            return value, {"cross_entropy": value}

        rate = self.config.rate * cosine(index, self.steps, warmup=self.steps // 10)
        return self.trained["classifier"].update("classifier", rate, self.config.batch, loss)

    def finish(self) -> None:
        self.classifier.requires_grad_(False)
