"""Trains the classifier that judges the digits' images."""

from __future__ import annotations

import torch
from torch import nn

from ..loop import Losses, Stage
from ..samples.digits import DigitsData


class ClassifierStage(Stage):
    """The classifier that judges images, in one step."""

    def __init__(self, classifier: nn.Module, data: DigitsData, seed: int, epochs: int) -> None:
        super().__init__("classifier", 1)
        self.classifier, self.data = classifier, data
        self.settings = {"seed": seed, "epochs": epochs}

    def step(self, index: int, rng: torch.Generator) -> Losses:
        from ...metrics.classifier import train_classifier

        data = self.data
        trained = train_classifier(data.train_images, data.train_labels, **self.settings)
        self.classifier.load_state_dict(trained.state_dict())
        return {}
