"""How VAR's networks are trained on images: new ones, and the codes of the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ambient import outside_autocast
from ...ops import nearest_code
from ..family import Coded, FromImages
from ..kmeans import means
from .teacher import VARTeacher
from .tokenizer import VARTokenizer

_SMALLEST_SCALE = 1e-4


class VARCoding:
    """The codes of all scales: vq and commitment are means over the scales of
    ``|f_hat_k - sg f|^2`` and ``|sg f_hat_k - f|^2``, ``f_hat_k`` of the first ``k`` scales (arXiv
    2404.02905, Eq. 5). At the end each dimension has unit variance."""

    def __init__(self, tokenizer: VARTokenizer) -> None:
        self.tokenizer, self.quantizer = tokenizer, tokenizer.quantize
        for i, phi in enumerate(self.quantizer.quant_resi.qresi_ls):
            phi.requires_grad_(i in self.quantizer.phi_indices)  # some serve no scale

    @property
    def codes(self) -> nn.Parameter:
        return cast(nn.Parameter, self.quantizer.embedding.weight)

    def plain(self, features: Tensor) -> Tensor:
        return features

    def code(self, features: Tensor) -> Coded:
        """``quantised`` is ``f_hat [B, C, g, g]``."""
        quantizer = self.quantizer
        with outside_autocast(features.device):
            features = features.float()
            target, book = features.detach(), quantizer.embedding
            f_hat: Tensor | None = None
            vq, commitment = features.new_zeros(()), features.new_zeros(())
            tokens, rests = [], []
            for k in range(quantizer.scales.count):
                rest = target if f_hat is None else target - f_hat.detach()
                rows = quantizer.next_input(rest, k)
                codes = nearest_code(rows, book.weight.detach())
                f_hat = quantizer.add_scale(f_hat, book(codes), k)
                vq = vq + F.mse_loss(f_hat, target)
                commitment = commitment + F.mse_loss(features, f_hat.detach())
                tokens.append(codes)
                rests.append(rows.flatten(0, 1))
            assert f_hat is not None
            count = quantizer.scales.count
            return Coded(
                features + (f_hat - features).detach(),
                vq / count,
                commitment / count,
                torch.cat(tokens, dim=1),
                torch.cat(rests),
            )

    @torch.no_grad()
    def start(self, features: Tensor, generator: torch.Generator) -> None:
        """Features of unit variance, ``phi`` near the identity, and codes by k-means over each
        scale's residuals, an equal number of codes a scale."""
        quantizer, book = self.quantizer, self.codes
        vocabulary, dimension = book.shape
        scale = features.std((0, 2, 3), correction=0).clamp(min=_SMALLEST_SCALE)
        _scale_features(self.tokenizer, scale)
        rest = features / scale[:, None, None]
        for phi in quantizer.quant_resi.qresi_ls:
            convolution = cast(nn.Conv2d, phi)
            convolution.weight.mul_(0.1)
            convolution.weight[:, :, 1, 1] += torch.eye(dimension, device=book.device)
            cast(Tensor, convolution.bias).zero_()
        count = quantizer.scales.count
        sizes = [len(part) for part in torch.arange(vocabulary).tensor_split(count)]
        for k, own in enumerate(torch.arange(vocabulary).split(sizes)):
            rows = quantizer.next_input(rest, k).flatten(0, 1)
            book[own] = means(rows, len(own), generator)
            codes = nearest_code(rows, book[: int(own[-1]) + 1])
            maps = book[codes].view(len(rest), -1, dimension)
            rest = rest - quantizer.add_scale(None, maps, k)

    def finish(self) -> None:
        unit_scale(self.tokenizer)


@torch.no_grad()
def unit_scale(tokenizer: VARTokenizer) -> Tensor:
    """Give the codes unit variance a dimension, and return the factors ``s [C]`` they were divided
    by.

    What the decoder makes of any tokens stays exactly the same: ``c / s`` adds up to ``f_hat / s``
    by ``phi`` between scaled axes, and ``post_quant_conv`` takes the factor back. Encoding looks
    for the nearest code in the scaled axes from then on.
    """
    quantizer = tokenizer.quantize
    weight = quantizer.embedding.weight
    scale = weight.std(0, correction=0).clamp(min=_SMALLEST_SCALE)
    weight.div_(scale)
    for phi in quantizer.quant_resi.qresi_ls:
        convolution = cast(nn.Conv2d, phi)
        convolution.weight.mul_(scale[:, None, None]).div_(scale[:, None, None, None])
        cast(Tensor, convolution.bias).div_(scale)
    _scale_features(tokenizer, scale)
    return scale


@torch.no_grad()
def _scale_features(tokenizer: VARTokenizer, scale: Tensor) -> None:
    """Divide the quantised features by ``scale [C]``; the decoder takes it back."""
    tokenizer.quant_conv.weight.div_(scale[:, None, None, None])
    cast(Tensor, tokenizer.quant_conv.bias).div_(scale)
    tokenizer.post_quant_conv.weight.mul_(scale[:, None, None])


def _new_tokenizer(size: int, channels: int, settings: Mapping[str, Any]) -> VARTokenizer:
    names = ("patch_nums", "vocabulary", "dimension", "channels", "multipliers", "blocks")
    own = {name: settings[name] for name in (*names, "phis", "groups")}
    return _fitting(VARTokenizer(**own, image_channels=channels), size, channels)


def _fitting(tokenizer: VARTokenizer, size: int, channels: int) -> VARTokenizer:
    for name, wanted, given in (
        ("size", tokenizer.image_size, size),
        ("channels", tokenizer.image_channels, channels),
    ):
        if wanted != given:
            raise ValueError(
                f"data.{name}: expected the tokenizer's {wanted} (the last of "
                f"tokenizer.patch_nums times 2 for every level but one), got {given}"
            )
    return tokenizer


def _new_teacher(
    tokenizer: VARTokenizer, num_classes: int, settings: Mapping[str, Any]
) -> VARTeacher:
    vocabulary, dimension = tokenizer.codebook.shape
    own = {name: settings[name] for name in ("width", "layers", "heads", "shared_aln")}
    return VARTeacher(
        **own,
        patch_nums=tokenizer.patch_nums,
        vocabulary=vocabulary,
        dimension=dimension,
        num_classes=num_classes,
    )


IMAGES = FromImages(
    tokenizer=_new_tokenizer,
    fit=_fitting,
    teacher=_new_teacher,
    coding=VARCoding,
    classes="class_emb.weight",
)
