"""A small convolutional VQ tokenizer for gray images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...ambient import constant, own_precision
from ...ops import nearest_code
from ..checks import check_embeddings, check_tokens
from ..editing import KnownRaster
from ..kernels import unit_range
from ..pretrained import Pretrained
from ..small import decoded_at_once


class _Residual(nn.Module):
    """``h + Conv1x1(GELU(Conv3x3(GELU(h))))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.body(h)


class VQTokenizer(Pretrained, nn.Module):
    """Images to a grid of codes and back, at half the resolution.

    The public codebook is centred and of unit variance per dimension; ``shift + scale * code`` is
    the code in the encoder's space, where an image's latents are matched to their nearest code.

    Args:
        image_size: side of the square image in pixels, even. vocabulary: V. dimension: C.
        width: channels of the convolutions.
    """

    codebook: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(
        self, *, image_size: int = 8, vocabulary: int = 64, dimension: int = 8, width: int = 48
    ) -> None:
        super().__init__()
        if image_size % 2:
            raise ValueError(f"image_size: expected an even number, got {image_size}")
        self.config: dict[str, Any] = dict(
            image_size=image_size, vocabulary=vocabulary, dimension=dimension, width=width
        )
        self.image_size, self.grid = image_size, image_size // 2
        self.num_tokens = self.grid**2
        self.register_buffer("codebook", torch.zeros(vocabulary, dimension))
        self.register_buffer("shift", torch.zeros(dimension))
        self.register_buffer("scale", torch.ones(dimension))
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 2, stride=2),
            _Residual(width),
            nn.GELU(),
            nn.Conv2d(width, dimension, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(dimension, width, 3, padding=1),
            _Residual(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.GELU(),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def latents(self, images: Tensor) -> Tensor:
        """The encoder's output ``[B, n, C]`` before quantisation."""
        size = self.image_size
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images: expected a float torch.Tensor, got {got}")
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise ValueError(
                f"images: expected shape ['B', 3, {size}, {size}], got {list(images.shape)}"
            )
        gray = images.to(self.codebook.dtype).mean(dim=1, keepdim=True)
        return self.encoder(2 * gray - 1).flatten(2).transpose(1, 2)

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Gray images ``[B, 1, H, W]``, unclamped, of latents ``[B, n, C]`` in encoder space."""
        return self._decoded(latents) * 0.5 + 0.5

    def _decoded(self, latents: Tensor) -> Tensor:
        # As a view with channels last: one small image then takes two thirds of the time.
        grid = latents.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        return self.decoder(grid)

    def raw_codebook(self) -> Tensor:
        """The codes ``[V, C]`` in the encoder's space."""
        return torch.addcmul(self.shift, self.codebook, self.scale)

    def set_raw_codebook(self, codes: Tensor) -> None:
        """Take codes ``[V, C]`` of the encoder's space as the codebook and normalise it."""
        self.shift.copy_(codes.mean(0))
        self.scale.copy_(codes.std(0, correction=0).clamp(min=1e-6))
        self.codebook.copy_((codes - self.shift) / self.scale)

    @constant
    def encode(self, images: Tensor) -> Tensor:
        """Tokens ``[B, n]`` (int64, row by row) of images ``[B, 3, H, W]`` in [0, 1]."""
        latents = self.latents(images)
        return nearest_code(latents, self.raw_codebook())

    def known(self, images: Tensor, mask: Tensor) -> KnownRaster:
        """What is known of images under a mask, bool ``[B, 1, H, W]``, True where to draw."""
        return KnownRaster(self, images, mask)

    @constant
    def embed(self, tokens: Tensor) -> Tensor:
        """Code vectors ``[B, n, C]`` of int64 tokens ``[B, n]``."""
        check_tokens(tokens, self.num_tokens, self.codebook.shape[0], self.codebook.device)
        return self.codebook[tokens]

    @own_precision
    def decode(self, embeddings: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in [0, 1], float32 or wider, of embeddings ``[B, n, C]``, codes
        or not; NaN where the decoder's output is not finite."""
        codebook = self.codebook
        check_embeddings(
            "embeddings", embeddings, self.num_tokens, codebook.shape[1], codebook.device
        )
        embeddings = embeddings.to(codebook.dtype)
        if not torch.compiler.is_compiling():
            images = decoded_at_once(self, embeddings)
            if images is not None:
                return images
        raw = torch.addcmul(self.shift, embeddings, self.scale)
        return unit_range(self._decoded(raw)).repeat(1, 3, 1, 1)
