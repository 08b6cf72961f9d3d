"""Products and convolutions of large layers by eight-bit integers, on CPUs that multiply those.

Weights have a scale for every output, ``w ~ s_o q``, ``|q| <= 127``. What they meet is rounded as
it comes, by a scale for every row of a product and for every image of a convolution, so that
nothing has to be calibrated and no image depends on the others of its batch. Sums are exact; torch
gives them to oneDNN. (LLM.int8(), arXiv 2208.07339, rounds rows and columns so.)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .folded import Folded, FoldedUpsampling, JoinedLinear
from .rounded import SMALLEST, RoundedLinear, replace_layers

# The fewest inputs and outputs with which a layer gains more than the rounding of its input takes.
_PRODUCT_PAYS, _CONVOLUTION_PAYS = 128, 64


def missing() -> str | None:
    """Why this machine cannot, or None."""
    if not torch.backends.mkldnn.is_available():
        return "torch was built without oneDNN"
    # Without them oneDNN adds pairs of products in 16 bits, which saturate.
    supported = getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
    return None if supported else "the processor has no eight-bit products (AVX-512 VNNI)"


class Int8Weight(NamedTuple):
    """A weight ``[O, D]`` for :func:`.kernels.linear`: int8 ``[D, O]`` and scales ``[O]``."""

    values: Tensor
    scales: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        return self.scales.dtype

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x W^T + b`` of ``x [*, D]``."""
        rows = x.flatten(0, -2)
        scale = rows.abs().amax(1, keepdim=True).clamp_min_(SMALLEST).div_(127)
        rounded = (rows / scale).round_().to(torch.int8)
        out = torch._int_mm(rounded, self.values).to(x.dtype).mul_(scale).mul_(self.scales)
        if bias is not None:
            out += bias
        return out.unflatten(0, x.shape[:-1])


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers like ``weight [O, ...]`` and their scales ``[O]``."""
    rows = weight.detach().flatten(1)
    scales = rows.abs().amax(1).clamp_min(SMALLEST) / 127
    return (rows / scales[:, None]).round().to(torch.int8).view(weight.shape), scales


class Int8Linear(RoundedLinear):
    """``nn.Linear``."""

    def fold(self) -> dict[str, Tensor]:
        values, scales = _rounded(self.exact())
        return {"values": values.t().contiguous(), "scales": scales}

    @property
    def weight(self) -> Int8Weight:
        """What stands for the source's where only that is used."""
        return Int8Weight(self.values, self.scales)


class Int8Conv(Folded):
    """``nn.Conv2d``, of every pixel doubled if ``doubles``."""

    values: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, source: nn.Conv2d, *, doubles: bool = False) -> None:
        stride, padding, dilation = source.stride, source.padding, source.dilation
        self.layout: Any = [list(stride), list(padding), list(dilation), source.groups]
        self.doubles = doubles
        super().__init__(source)
        self.bias = source.bias
        self._packed: Any = None  # as oneDNN wants them

    def fold(self) -> dict[str, Tensor]:
        values, scales = _rounded(self.source.weight)
        zeros = torch.zeros(len(scales), dtype=torch.int32)
        return {"values": values, "scales": scales, "zeros": zeros}

    def refold(self) -> None:
        super().refold()
        self._packed = None

    def forward(self, h: Any) -> Tensor:
        h = h if isinstance(h, Tensor) else h.add()  # as FoldedUpsampling
        if self._packed is None:
            pack = torch.ops.onednn.qconv_prepack
            self._packed = pack(self.values, self.scales, 1.0, 0, *self.layout, None)
        images = [self._of_one(image) for image in h.split(1)]
        return images[0] if len(images) == 1 else torch.cat(images)

    def _of_one(self, image: Tensor) -> Tensor:
        low, high = image.aminmax()
        least, most = min(float(low), 0.0), max(float(high), 0.0)
        if not math.isfinite(most - least):  # NaN and infinity must come out
            return self._of_one(torch.zeros_like(image)) + torch.nan
        scale = max((most - least) / 254, SMALLEST)  # one step is left for the zero's rounding
        zero = round(-least / scale)
        start = torch.full((), zero + 0.5, dtype=image.dtype)
        rounded = torch.add(start, image, alpha=1 / scale).to(torch.uint8)
        if self.doubles:
            rounded = F.interpolate(rounded, scale_factor=2.0, mode="nearest")
        return torch.ops.onednn.qconv2d_pointwise(
            rounded, scale, zero, self._packed, self.scales, self.zeros, self.bias, *self.layout,
            1.0, 0, image.dtype, "none", [], "",
        )  # fmt: skip


def to_int8(network: nn.Module) -> int:
    """Put such layers in the place of large ones in a prepared network; how many there are."""
    return replace_layers(network, _of_large)


def _of_large(layer: nn.Module) -> nn.Module | None:
    if isinstance(layer, nn.Linear | JoinedLinear):
        pays = min(layer.in_features, layer.out_features) >= _PRODUCT_PAYS
        return Int8Linear(layer) if pays else None
    doubles = isinstance(layer, FoldedUpsampling)
    conv = layer.source.conv if isinstance(layer, FoldedUpsampling) else layer
    if not isinstance(conv, nn.Conv2d):
        return None
    pays = conv.groups == 1 and min(conv.in_channels, conv.out_channels) >= _CONVOLUTION_PAYS
    return Int8Conv(conv, doubles=doubles) if pays else None
