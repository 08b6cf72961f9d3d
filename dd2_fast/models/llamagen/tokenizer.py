"""LlamaGen's tokenizers VQ-16 and VQ-8: images to a raster of codes on the unit sphere and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ambient import constant, own_precision
from ...ops import nearest_code
from ..attached import Preparable
from ..checks import check_embeddings, check_tokens
from ..editing import KnownRaster
from ..kernels import convolution_layout, unit_range
from ..pretrained import Pretrained
from .vq import Decoder, Encoder, Sizes


class LlamaGenTokenizer(Pretrained, Preparable):
    """A VQ auto-encoder of square images, under the released parameter names.

    Latents and codes are L2-normalised where they meet. Any square raster is taken unless ``grid``
    fixes it. Tokens and codes are raster ordered; VQ-16 makes one token of 16 x 16 pixels. Images
    are ``[B, c, H, W]``, c is 3, or 1 for grey ones.

    Args:
        channels: of the first convolution, a multiple of ``groups``. multiples: of ``channels`` at
            each resolution, which halves from one to the next. latents: Z, the encoder's output
            channels.
        blocks: residual blocks at each resolution of the encoder; the decoder has one more.
        vocabulary: V. dimension: C. grid: tokens along a side, or None for any.
        image_channels: c, 3 or 1. groups: of every GroupNorm; the released ones have 32.
        code_length: |c_j| of ``codebook``, of ``latents`` and of what is decoded, 1 as released.
            ``sqrt(C)`` makes the mean square of a coordinate 1, that of noise. It is a factor
            outside of the weights, which stay those of a released file.
    """

    def __init__(
        self,
        *,
        channels: int = 128,
        multiples: Sequence[int] = (1, 1, 2, 2, 4),
        latents: int = 256,
        blocks: int = 2,
        vocabulary: int = 16384,
        dimension: int = 8,
        grid: int | None = None,
        image_channels: int = 3,
        groups: int = 32,
        code_length: float = 1.0,
    ) -> None:
        super().__init__()
        if groups < 1:
            raise ValueError(f"groups: expected at least 1, got {groups}")
        if channels % groups or channels < groups:
            raise ValueError(f"channels: expected a multiple of {groups} (groups), got {channels}")
        if image_channels not in (1, 3):
            raise ValueError(f"image_channels: expected 1 or 3, got {image_channels}")
        if not 0.5 <= code_length < math.inf:  # what EmbeddingMLP tells the length of
            raise ValueError(f"code_length: expected at least 0.5, got {code_length}")
        if grid is not None and grid < 1:
            raise ValueError(f"grid: expected at least 1, got {grid}")
        if not multiples:
            raise ValueError("multiples: expected at least one resolution, got none")
        self.config: dict[str, Any] = dict(
            channels=channels,
            multiples=list(multiples),
            latents=latents,
            blocks=blocks,
            vocabulary=vocabulary,
            dimension=dimension,
            grid=grid,
            image_channels=image_channels,
            groups=groups,
            code_length=code_length,
        )
        self.grid, self.factor = grid, 2 ** (len(multiples) - 1)
        self.image_channels, self.code_length = image_channels, code_length
        sizes = Sizes(channels, multiples, latents, blocks, image_channels, groups)
        self.encoder, self.decoder = Encoder(sizes), Decoder(sizes)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(vocabulary, dimension)})
        self.quant_conv = nn.Conv2d(latents, dimension, 1)
        self.post_quant_conv = nn.Conv2d(dimension, latents, 1)

    @property
    def codebook(self) -> Tensor:
        """The codes ``[V, C]``, of length ``code_length``, float32 or wider."""
        return self._of_length(self.get_parameter("quantize.embedding.weight").detach())

    @property
    def image_size(self) -> int | None:
        """Pixels along a side, None for any."""
        return None if self.grid is None else self.grid * self.factor

    def fix_grid(self, grid: int) -> None:
        """Take images and tokens of one raster from now on, ``grid`` tokens along a side."""
        self.grid = self.config["grid"] = grid

    def latents(self, images: Tensor) -> Tensor:
        """Vectors ``[B, n, C]`` of the codes' length of images ``[B, c, H, W]``, before the nearest
        code."""
        return self._of_length(self.features(images).flatten(2).transpose(1, 2))

    def features(self, images: Tensor) -> Tensor:
        """What is normalised and coded, ``[B, C, g, g]``, of images ``[B, c, H, W]`` in [0, 1]."""
        self._check_images(images)
        dtype = self.post_quant_conv.weight.dtype
        return self.quant_conv(self.encoder(2 * images.to(dtype) - 1))

    def _of_length(self, vectors: Tensor) -> Tensor:
        wide = torch.promote_types(vectors.dtype, torch.float32)
        units = F.normalize(vectors.to(wide), dim=-1)
        return units if self.code_length == 1 else self.code_length * units

    @constant
    def encode(self, images: Tensor) -> Tensor:
        """Tokens ``[B, n]`` (int64, row by row) of images ``[B, c, H, W]`` in [0, 1]."""
        return nearest_code(self.latents(images), self.codebook)

    def known(self, images: Tensor, mask: Tensor) -> KnownRaster:
        """What is known of images under a mask, bool ``[B, 1, H, W]``, True where to draw."""
        return KnownRaster(self, images, mask)

    @constant
    def embed(self, tokens: Tensor) -> Tensor:
        """Code vectors ``[B, n, C]`` of int64 tokens ``[B, n]``."""
        codebook = self.codebook
        count = self._count("tokens", tokens, 2)
        check_tokens(tokens, count, codebook.shape[0], codebook.device)
        return codebook[tokens]

    def reconstruct(self, embeddings: Tensor) -> Tensor:
        """The decoder's images ``[B, c, H, W]``, in [-1, 1] but unclamped, of ``[B, n, C]``."""
        count = self._count("embeddings", embeddings, 3)
        device = self.post_quant_conv.weight.device
        check_embeddings("embeddings", embeddings, count, self.config["dimension"], device)
        side = math.isqrt(count)
        if self.code_length != 1:
            embeddings = embeddings / self.code_length
        z = embeddings.to(self.post_quant_conv.weight.dtype).unflatten(1, (side, side))
        return self.decoder(self.post_quant_conv(convolution_layout(z.permute(0, 3, 1, 2))))

    @own_precision
    def decode(self, embeddings: Tensor) -> Tensor:
        """Images ``[B, c, H, W]`` in [0, 1], float32 or wider, of embeddings ``[B, n, C]``, codes
        or not; NaN where the decoder's output is not finite."""
        return unit_range(self.reconstruct(embeddings))

    def _count(self, name: str, value: Any, dimensions: int) -> int:
        """The number of tokens that ``value`` should have: ``grid^2``, or its own if square."""
        if self.grid is not None:
            return self.grid**2
        if not isinstance(value, Tensor) or value.ndim != dimensions:
            return 0
        count = value.shape[1]
        if count < 1 or math.isqrt(count) ** 2 != count:
            raise ValueError(f"{name}: expected n to be a square number of tokens, got {count}")
        return count

    def _check_images(self, images: Any) -> None:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images: expected a float torch.Tensor, got {got}")
        side, channels = images.shape[-1] if images.ndim else 0, self.image_channels
        wanted = (
            f"['B', {channels}, S, S] with S a multiple of {self.factor}"
            if self.grid is None
            else str(["B", channels, self.grid * self.factor, self.grid * self.factor])
        )
        fits = side > 0 and (
            side % self.factor == 0 if self.grid is None else side == self.grid * self.factor
        )
        if images.ndim != 4 or tuple(images.shape[1:]) != (channels, side, side) or not fits:
            raise ValueError(f"images: expected shape {wanted}, got {list(images.shape)}")
