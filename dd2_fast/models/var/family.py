"""VAR's record."""

from __future__ import annotations

import torch

from ..family import RANDOM_CLASSES, RANDOM_SIZES, Family
from .backbone import VARBackbone
from .images import IMAGES
from .prepared import PREPARED
from .released import FORMATS
from .student import DD1VARStudent
from .teacher import VARTeacher
from .tokenizer import VARTokenizer


def _random() -> VARTeacher:
    teacher = VARTeacher(
        **RANDOM_SIZES,
        patch_nums=(1, 2, 3, 4),
        num_classes=RANDOM_CLASSES,
        width=32,
        layers=2,
        heads=2,
    )
    tokenizer = VARTokenizer(
        **RANDOM_SIZES, patch_nums=(1, 2, 3, 4), channels=32, multipliers=(1, 2), blocks=1
    )
    torch.nn.init.normal_(tokenizer.quantize.embedding.weight)
    teacher.tokenizer = tokenizer.eval().requires_grad_(False)
    return teacher


FAMILY = Family(
    name="var",
    backbone=VARBackbone,
    kinds={
        "var_teacher": VARTeacher,
        "var_tokenizer": VARTokenizer,
        "dd1_var_student": DD1VARStudent,
    },
    random=_random,
    formats=FORMATS,
    images=IMAGES,
    prepared=PREPARED,
)
