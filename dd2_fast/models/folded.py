"""Parts of networks for inference, whose constants are worked out once.

Each stands for a part of a network and computes the same in fewer kernels. It shares the weights
that it uses as they are; what it makes of others are buffers. :func:`.prepared.prepare` puts them
together and works them out anew, in place, when weights change.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .head import FlowHead, fused_blocks, time_embedding
from .kernels import fold_upsampling, linear, prepares_fused_norm


class Folded(nn.Module):
    """A part for inference: its buffers follow from the part it stands for, the ``source``."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self._sources = (source,)  # not a submodule
        for name, value in self.fold().items():
            self.register_buffer(name, value)

    @property
    def source(self) -> Any:
        """What it stands for."""
        return self._sources[0]

    @abstractmethod
    def fold(self) -> dict[str, Tensor]:
        """The buffers, made of the source as it is now."""

    def refold(self) -> None:
        """Make the buffers anew where they lie."""
        for name, value in self.fold().items():
            self.get_buffer(name).copy_(value)


def wide(tensor: Tensor) -> Tensor:
    """In float64, to be combined with others before one rounding."""
    return tensor.detach().to(torch.float64)


class JoinedLinear(Folded):
    """Layers that read the same and have no bias, as one."""

    weight: Tensor
    bias = None

    def __init__(self, *sources: nn.Linear) -> None:
        super().__init__(sources)
        self.out_features, self.in_features = self.weight.shape

    def fold(self) -> dict[str, Tensor]:
        return {"weight": torch.cat([layer.weight for layer in self.source]).detach()}

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, None)


class FoldedUpsampling(Folded):
    """:func:`.kernels.upsample_conv` of a part with a 3x3 convolution ``conv``."""

    weight: Tensor

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self.bias = source.conv.bias

    def fold(self) -> dict[str, Tensor]:
        weight = self.source.conv.weight
        folded = fold_upsampling(wide(weight)).to(weight.dtype)
        return {"weight": folded.contiguous(memory_format=torch.channels_last)}

    def forward(self, h: Any) -> Tensor:
        h = h if isinstance(h, Tensor) else h.add()  # a sum that was left to its reader
        return F.conv_transpose2d(h, self.weight, self.bias, stride=2, padding=1)


class ChannelsLastConv(Folded):
    """A convolution whose weights have their channels last in memory."""

    weight: Tensor

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__(source)
        self.bias, self.stride, self.padding = source.bias, source.stride, source.padding

    def fold(self) -> dict[str, Tensor]:
        weight = self.source.weight.detach()
        return {"weight": weight.to(memory_format=torch.channels_last, copy=True)}

    def forward(self, h: Tensor) -> Tensor:
        return F.conv2d(h, self.weight, self.bias, self.stride, self.padding)


def convolution(source: nn.Conv2d) -> nn.Module:
    """What runs a convolution: on a CPU itself, where oneDNN packs weights from either layout."""
    return source if source.weight.device.type == "cpu" else ChannelsLastConv(source)


class FoldedHead(Folded):
    """A :class:`FlowHead` at ``t = 1``: the time's part is in the condition's bias, and the ones of
    ``1 + scale`` are in the modulation's."""

    condition: Tensor
    modulation: Tensor

    def __init__(self, source: FlowHead) -> None:
        super().__init__(source)
        self.blocks = source.blocks
        self.features, self.rows = source.condition, source.modulation
        self.input, self.output = source.input, source.output
        self.expand, self.contract = source.expand, source.contract
        self.fused = prepares_fused_norm(self.input.weight)

    def fold(self) -> dict[str, Tensor]:
        head: Any = self.source
        dtype = head.input.weight.dtype
        frequencies = head.constants.frequencies
        time = time_embedding(1.0, frequencies.to(torch.promote_types(dtype, torch.float32)))
        first, _, second = head.time
        hidden = F.silu(wide(first.weight) @ wide(time.to(dtype)) + wide(first.bias))
        condition = wide(head.condition.bias) + wide(second.weight) @ hidden + wide(second.bias)
        modulation = wide(head.modulation.bias).clone().unflatten(0, (3 * head.blocks + 2, -1))
        modulation[1::3] += 1
        return {"condition": condition.to(dtype), "modulation": modulation.flatten().to(dtype)}

    def forward(self, x_t: Tensor, t: float, features: Tensor) -> Tensor:
        """Velocity of ``x_t [*, C]`` at ``t = 1.0``, given ``features [*, D]``."""
        if t != 1.0:
            raise ValueError(f"t: expected 1.0, for which the head is prepared, got {t}")
        c = F.silu(linear(features, self.features.weight, self.condition), inplace=True)
        modulation = linear(c, self.rows.weight, self.modulation)
        h = self.input(x_t.to(self.input.weight.dtype))
        if self.fused:
            return self.output(fused_blocks(self, h, modulation, ones=True))
        rows = modulation.chunk(3 * self.blocks + 2, dim=-1)
        shape = h.shape[-1:]
        for i, (expand, contract) in enumerate(zip(self.expand, self.contract, strict=True)):
            shift, gain, gate = rows[3 * i : 3 * i + 3]
            inner = expand(torch.addcmul(shift, F.layer_norm(h, shape), gain))
            h = torch.addcmul(h, gate, contract(F.silu(inner, inplace=True)))
        shift, gain = rows[-2:]
        return self.output(torch.addcmul(shift, F.layer_norm(h, shape), gain))
