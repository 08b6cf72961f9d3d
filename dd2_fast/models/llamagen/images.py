"""How LlamaGen's networks are trained on images: new ones, and the codes of the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ambient import outside_autocast
from ...ops import nearest_code
from ..family import Coded, FromImages
from ..kmeans import means
from .teacher import LlamaGenTeacher
from .tokenizer import LlamaGenTokenizer

_HIDDEN_MULTIPLE = 32  # of SwiGLU's inner width; 256 at the released sizes
_RELEASED_WIDTH = 768
_START = 0.02  # standard deviation of new weights


class LlamaGenCoding:
    """Codes and features on the unit sphere: vq and commitment are ``|e - sg z|^2`` and
    ``|sg e - z|^2`` of normalised features ``z`` and their nearest codes ``e`` (arXiv 2406.06525).

    A file's codes end with unit length, as they are used. A factor a dimension, which would give
    each unit variance, would leave the sphere; that of new tokenizers, ``code_length = sqrt(C)``,
    gives all of them together a mean square of 1.
    """

    def __init__(self, tokenizer: LlamaGenTokenizer) -> None:
        self.tokenizer = tokenizer

    @property
    def codes(self) -> nn.Parameter:
        return self.tokenizer.get_parameter("quantize.embedding.weight")

    def plain(self, features: Tensor) -> Tensor:
        with outside_autocast(features.device):
            return F.normalize(features.float(), dim=1)

    def code(self, features: Tensor) -> Coded:
        """``quantised`` are codes of unit length, ``[B, C, g, g]``."""
        with outside_autocast(features.device):
            z = self.plain(features)
            rows = z.permute(0, 2, 3, 1)
            book = F.normalize(self.codes, dim=-1)
            tokens = nearest_code(rows.detach(), book.detach())
            codes = book[tokens]
            return Coded(
                z + (codes.permute(0, 3, 1, 2) - z).detach(),
                F.mse_loss(codes, rows.detach()),
                F.mse_loss(rows, codes.detach()),
                tokens.flatten(1),
                rows.flatten(0, 2),
            )

    @torch.no_grad()
    def start(self, features: Tensor, generator: torch.Generator) -> None:
        rows = self.plain(features).permute(0, 2, 3, 1).flatten(0, 2)
        found = means(rows, len(self.codes), generator, lambda row: F.normalize(row, dim=-1))
        self.codes.copy_(found)

    @torch.no_grad()
    def finish(self) -> None:
        self.codes.copy_(F.normalize(self.codes, dim=-1))


def _new_tokenizer(size: int, channels: int, settings: Mapping[str, Any]) -> LlamaGenTokenizer:
    names = ("vocabulary", "dimension", "channels", "latents", "blocks", "groups")
    tokenizer = LlamaGenTokenizer(
        **{name: settings[name] for name in names},
        multiples=settings["multipliers"],
        image_channels=channels,
        code_length=math.sqrt(settings["dimension"]),
    )
    return _fitting(tokenizer, size, channels)


def _fitting(tokenizer: LlamaGenTokenizer, size: int, channels: int) -> LlamaGenTokenizer:
    """``tokenizer``, of images of this size alone from now on."""
    if tokenizer.image_channels != channels:
        raise ValueError(
            f"data.channels: expected the tokenizer's {tokenizer.image_channels}, got {channels}"
        )
    factor, wanted = tokenizer.factor, tokenizer.image_size
    if size % factor or size != (wanted or size):
        expected = f"the tokenizer's {wanted}" if wanted else f"a multiple of {factor}"
        raise ValueError(
            f"data.size: expected {expected} ({factor} pixels a token, 2 for every level of "
            f"tokenizer.multipliers but one), got {size}"
        )
    tokenizer.fix_grid(size // factor)
    return tokenizer


def _new_teacher(
    tokenizer: LlamaGenTokenizer, num_classes: int, settings: Mapping[str, Any]
) -> LlamaGenTeacher:
    """New weights are normal ones and the classifier's zero, as in the public trainer."""
    vocabulary, dimension = tokenizer.codebook.shape
    width, grid = settings["width"], tokenizer.grid
    assert grid is not None, "_fitting sees to it"
    multiple = 256 if width >= _RELEASED_WIDTH else _HIDDEN_MULTIPLE
    teacher = LlamaGenTeacher(
        width=width,
        layers=settings["layers"],
        heads=settings["heads"],
        hidden=-(-(8 * width // 3) // multiple) * multiple,
        num_classes=num_classes,
        grid=grid,
        vocabulary=vocabulary,
        dimension=dimension,
    )
    for module in teacher.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=_START)
    nn.init.zeros_(teacher.output.weight)
    return teacher


IMAGES = FromImages(
    tokenizer=_new_tokenizer,
    fit=_fitting,
    teacher=_new_teacher,
    coding=LlamaGenCoding,
    classes="cls_embedding.embedding_table.weight",
)
