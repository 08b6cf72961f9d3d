"""The small family's record."""

from __future__ import annotations

import torch

from ..family import RANDOM_CLASSES, RANDOM_SIZES, Family
from .table import TableTeacher
from .teacher import ARTeacher
from .tokenizer import VQTokenizer
from .transformer import CausalTransformer


def _random() -> ARTeacher:
    tokenizer = VQTokenizer(**RANDOM_SIZES, image_size=8, width=16)
    torch.nn.init.normal_(tokenizer.codebook)
    teacher = ARTeacher(
        **RANDOM_SIZES,
        num_tokens=tokenizer.num_tokens,
        num_classes=RANDOM_CLASSES,
        width=32,
        layers=2,
        heads=2,
        codebook=tokenizer.codebook,
    )
    teacher.tokenizer = tokenizer.eval().requires_grad_(False)
    return teacher


FAMILY = Family(
    name="causal",
    backbone=CausalTransformer,
    kinds={
        "vq_tokenizer": VQTokenizer,
        "ar_teacher": ARTeacher,
        "table_teacher": TableTeacher,
    },
    random=_random,
    classifier="classifier",
)
