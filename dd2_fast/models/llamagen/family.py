"""LlamaGen's record."""

from __future__ import annotations

import torch

from ..family import RANDOM_CLASSES, RANDOM_SIZES, Family
from .adaptation import adapt
from .backbone import LlamaGenBackbone
from .images import IMAGES
from .prepared import PREPARED
from .released import FORMATS, UNSUPPORTED
from .student import DD1LlamaGenStudent
from .teacher import LlamaGenTeacher
from .tokenizer import LlamaGenTokenizer


def _random() -> LlamaGenTeacher:
    teacher = LlamaGenTeacher(
        **RANDOM_SIZES, num_classes=RANDOM_CLASSES, width=32, layers=2, heads=2, hidden=64, grid=4
    )
    tokenizer = LlamaGenTokenizer(
        **RANDOM_SIZES, channels=32, multiples=(1, 2), latents=32, blocks=1, grid=4
    )
    torch.nn.init.normal_(tokenizer.get_parameter("quantize.embedding.weight"))
    teacher.tokenizer = tokenizer.eval().requires_grad_(False)
    return teacher


def _adapt(teacher: LlamaGenTeacher, seed: int) -> LlamaGenTeacher:
    if teacher.adapted:
        return teacher
    smooth = min(1024, 8 * teacher.width)  # of small networks no more than a block's work
    return adapt(teacher, smooth=smooth, seed=seed)[0]


FAMILY = Family(
    name="llamagen",
    backbone=LlamaGenBackbone,
    kinds={
        "llamagen_teacher": LlamaGenTeacher,
        "llamagen_tokenizer": LlamaGenTokenizer,
        "dd1_llamagen_student": DD1LlamaGenStudent,
    },
    random=_random,
    formats=FORMATS,
    images=IMAGES,
    prepared=PREPARED,
    unsupported=UNSUPPORTED,
    adapt=_adapt,
    classifier="output",
)
