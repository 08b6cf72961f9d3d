"""What generated images and tokens are judged by."""

from __future__ import annotations

from .classifier import DigitsClassifier, train_classifier
from .fidelity import fid
from .frechet import frechet_distance, frechet_distance_per_class
from .image_classifier import ImageClassifier
from .image_report import evaluate_images
from .inception_score import inception_score
from .kernel_distance import kernel_distance
from .likelihood import negative_log_likelihood
from .path_length import perceptual_path_length
from .precision_recall import precision_recall
from .report import evaluate, shuffle_within_class, teacher_sampling
from .total_variation import total_variation

__all__ = [
    "DigitsClassifier",
    "ImageClassifier",
    "evaluate",
    "evaluate_images",
    "fid",
    "frechet_distance",
    "frechet_distance_per_class",
    "inception_score",
    "kernel_distance",
    "negative_log_likelihood",
    "perceptual_path_length",
    "precision_recall",
    "shuffle_within_class",
    "teacher_sampling",
    "total_variation",
    "train_classifier",
]
