"""VAR's tokenizer: images to codes of all scales and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...ambient import constant, own_precision
from ..attached import Preparable
from ..checks import check_embeddings, check_tokens
from ..kernels import convolution_layout, unit_range
from ..pretrained import Pretrained
from .codec import Decoder, Encoder
from .known import KnownScales
from .quantizer import MultiScaleQuantizer
from .scales import Scales

PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


class VARTokenizer(Pretrained, Preparable):
    """The multi-scale VQ autoencoder that VAR's teachers and students share.

    Tokens and embeddings run scale by scale, row by row. Images are ``[B, c, H, W]`` in [0, 1]
    with ``H = W`` = the last scale's side times ``2^(levels - 1)``; c is 3, or 1 for grey ones.

    Args:
        patch_nums: sides of the scales, 1 first. vocabulary: V. dimension: C.
        channels: of the convolutions at full resolution, a multiple of ``groups``.
        multipliers: of ``channels``, one a resolution. blocks: residual blocks a resolution.
        phis: convolutions that the scales share. image_channels: c, 3 or 1.
        groups: of every GroupNorm; the released tokenizer has 32.

    Source: Tian et al., Visual autoregressive modeling (arXiv 2404.02905), Alg. 1 and 2.
    """

    def __init__(
        self,
        *,
        patch_nums: Sequence[int] = PATCH_NUMS,
        vocabulary: int = 4096,
        dimension: int = 32,
        channels: int = 160,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        phis: int = 4,
        image_channels: int = 3,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.scales = Scales.of(patch_nums)
        if image_channels not in (1, 3):
            raise ValueError(f"image_channels: expected 1 or 3, got {image_channels}")
        if groups < 1:
            raise ValueError(f"groups: expected at least 1, got {groups}")
        if channels % groups:
            raise ValueError(f"channels: expected a multiple of {groups} (groups), got {channels}")
        self.config: dict[str, Any] = dict(
            patch_nums=list(patch_nums),
            vocabulary=vocabulary,
            dimension=dimension,
            channels=channels,
            multipliers=list(multipliers),
            blocks=blocks,
            phis=phis,
            image_channels=image_channels,
            groups=groups,
        )
        self.image_channels = image_channels
        self.patch_nums = self.scales.sides
        self.grid, self.num_tokens = self.scales.grid, self.scales.num_tokens
        self.image_size = self.grid * 2 ** (len(multipliers) - 1)
        codec: dict[str, Any] = dict(image_channels=image_channels, groups=groups)
        self.encoder = Encoder(channels, multipliers, blocks, dimension, **codec)
        self.decoder = Decoder(channels, multipliers, blocks, dimension, **codec)
        self.quantize = MultiScaleQuantizer(
            self.scales, vocabulary=vocabulary, dimension=dimension, phis=phis
        )
        self.quant_conv = nn.Conv2d(dimension, dimension, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(dimension, dimension, 3, padding=1)

    def with_patch_nums(self, patch_nums: Sequence[int]) -> VARTokenizer:
        """This tokenizer at other scales, for images of another size; the weights are shared."""
        with torch.device("meta"):
            other = VARTokenizer(**{**self.config, "patch_nums": list(patch_nums)})
        other.encoder, other.decoder = self.encoder, self.decoder
        other.quant_conv, other.post_quant_conv = self.quant_conv, self.post_quant_conv
        other.quantize.embedding = self.quantize.embedding
        other.quantize.quant_resi = self.quantize.quant_resi
        return other.train(self.training)

    @property
    def codebook(self) -> Tensor:
        """Code vectors ``[V, C]``."""
        return self.quantize.embedding.weight.detach()

    @constant
    def encode(self, images: Tensor) -> Tensor:
        """Tokens ``[B, n]`` (int64) of images ``[B, c, H, W]`` in [0, 1].

        An image with a NaN or infinity gets -1.
        """
        return self.quantize.encode(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """What is quantised, ``[B, C, g, g]``, of images ``[B, c, H, W]`` in [0, 1]."""
        self._check_images(images)
        images = 2 * images.to(self.codebook.dtype) - 1
        return self.quant_conv(self.encoder(images))

    @constant
    def embed(self, tokens: Tensor) -> Tensor:
        """Code vectors ``[B, n, C]`` of int64 tokens ``[B, n]``."""
        check_tokens(tokens, self.num_tokens, self.codebook.shape[0], self.codebook.device)
        return self.codebook[tokens]

    def f_hat(self, embeddings: Tensor) -> Tensor:
        """The decoder's input ``[B, C, g, g]``, in float32 or wider, of embeddings ``[B, n, C]``,
        codes or not."""
        self._check(embeddings)
        return self.quantize.f_hat(embeddings)

    def next_inputs(self, embeddings: Tensor) -> Tensor:
        """What the scales after the first read, ``[B, n - 1, C]``, of embeddings ``[B, n, C]``."""
        self._check(embeddings)
        return self.quantize.next_inputs(embeddings)

    @own_precision
    def decode(self, embeddings: Tensor) -> Tensor:
        """Images ``[B, c, H, W]`` in [0, 1], float32 or wider, of embeddings ``[B, n, C]``; NaN
        where the decoder's output is not finite."""
        return self.decode_features(self.f_hat(embeddings))

    def decode_features(self, f_hat: Tensor) -> Tensor:
        """The same of a feature map ``[B, C, g, g]``, as :meth:`f_hat` gives it."""
        f_hat = convolution_layout(f_hat.to(self.codebook.dtype))
        return unit_range(self.decoder(self.post_quant_conv(f_hat)))

    def known(self, images: Tensor, mask: Tensor) -> KnownScales:
        """What is known of images under a mask, bool ``[B, 1, H, W]``, True where to draw."""
        return KnownScales(self, images, mask)

    def _check(self, embeddings: Tensor) -> None:
        codebook = self.codebook
        check_embeddings(
            "embeddings", embeddings, self.num_tokens, codebook.shape[1], codebook.device
        )

    def _check_images(self, images: Tensor) -> None:
        size, channels = self.image_size, self.image_channels
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images: expected a float torch.Tensor, got {got}")
        if images.ndim != 4 or tuple(images.shape[1:]) != (channels, size, size):
            raise ValueError(
                f"images: expected shape ['B', {channels}, {size}, {size}], "
                f"got {list(images.shape)}"
            )
