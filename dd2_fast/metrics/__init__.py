"""What generated images and tokens are judged by."""

from __future__ import annotations

from .classifier import DigitsClassifier, train_classifier
from .frechet import frechet_distance, frechet_distance_per_class
from .likelihood import negative_log_likelihood
from .report import evaluate, shuffle_within_class, teacher_sampling
from .total_variation import total_variation

__all__ = [
    "DigitsClassifier",
    "evaluate",
    "frechet_distance",
    "frechet_distance_per_class",
    "negative_log_likelihood",
    "shuffle_within_class",
    "teacher_sampling",
    "total_variation",
    "train_classifier",
]
