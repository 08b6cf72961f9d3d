"""What is known of images that VAR draws in part, scale by scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from .tokenizer import VARTokenizer


class KnownScales:
    """:class:`..editing.Known` of the scales of images ``[B, c, H, W]`` under a mask.

    A token is drawn where more than half of its cell is masked, one of the finest scale where any
    pixel is: were all drawn that touch the mask, the coarsest would be, and what is drawn would not
    have the brightness of what is known. A known one codes what is left of the
    image's features by the tokens before it, drawn ones too, so finer scales make up for what
    coarser ones drew beyond the mask. Without a mask the tokens are the tokenizer's own. Outside
    the mask the decoder reads the encoded image.
    """

    def __init__(self, tokenizer: VARTokenizer, images: Tensor, mask: Tensor) -> None:
        self.tokenizer = tokenizer
        features = tokenizer.features(images)
        self.features = features.to(torch.promote_types(features.dtype, torch.float32))
        self._rest, self._scale = self.features, 0
        self.steps = list(tokenizer.scales.slices)
        self.cell = tokenizer.image_size // tokenizer.grid
        pixels = mask.float()
        *coarse, finest = tokenizer.patch_nums
        cells = [F.adaptive_avg_pool2d(pixels, side) > 0.5 for side in coarse]
        cells.append(F.adaptive_max_pool2d(pixels, finest) > 0)
        self.inside = cells[-1]
        self.drawn = torch.cat([cell.flatten(1) for cell in cells], 1)

    def take(self, here: slice, proposed: Tensor) -> Tensor:
        scale, quantizer = self._scale, self.tokenizer.quantize
        assert here == self.steps[scale], "scales are taken in their order"
        own = quantizer.encode_scale(self._rest, scale)
        tokens = torch.where(self.drawn[:, here], proposed, own)
        self._rest, self._scale = quantizer.without(self._rest, tokens, scale), scale + 1
        return tokens

    def decode(self, tokens: Tensor) -> Tensor:
        made = self.tokenizer.f_hat(self.tokenizer.embed(tokens))
        return self.tokenizer.decode_features(torch.where(self.inside, made, self._own_f_hat()))

    def reconstruction(self) -> Tensor:
        return self.tokenizer.decode_features(self._own_f_hat())

    def _own_f_hat(self) -> Tensor:
        tokenizer = self.tokenizer
        return tokenizer.f_hat(tokenizer.embed(tokenizer.quantize.encode(self.features)))
