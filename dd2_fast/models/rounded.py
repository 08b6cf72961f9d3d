"""What :mod:`.int8` and :mod:`.fp8` share: layers that multiply by a rounded weight, and where they
go."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from .folded import Folded, JoinedLinear

SMALLEST = 1e-30  # scale: what is zero stays zero


class RoundedWeight(Protocol):
    """A weight for :func:`.kernels.linear` that is no tensor."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x W^T + b`` of ``x [*, D]``."""


class RoundedLinear(Folded):
    """``nn.Linear``, or a :class:`.folded.JoinedLinear`."""

    values: Tensor
    scales: Tensor

    def __init__(self, source: nn.Linear | JoinedLinear) -> None:
        super().__init__(source.source if isinstance(source, JoinedLinear) else (source,))
        self.bias = source.bias

    def exact(self) -> Tensor:
        """The weight ``[O, D]`` that is rounded."""
        return torch.cat([layer.weight.detach() for layer in self.source])

    @property
    @abstractmethod
    def weight(self) -> RoundedWeight:
        """What stands for the source's where only that is used."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.product(x, self.bias)


def replace_layers(network: nn.Module, rounded: Callable[[nn.Module], nn.Module | None]) -> int:
    """Put ``rounded(layer)`` in the place of every layer of a prepared network that it is not None
    of; how many there are."""
    layers = list(_replaced(network, rounded))
    for parent, name, layer in layers:
        setattr(parent, name, layer)
    return len(layers)


def _replaced(
    module: nn.Module, rounded: Callable[[nn.Module], nn.Module | None]
) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for name, child in list(module.named_children()):
        if name == "prepared":  # rows of classes, made once
            continue
        layer = rounded(child)
        if layer is not None:
            yield module, name, layer
        else:
            yield from _replaced(child, rounded)
