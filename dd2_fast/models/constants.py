"""Tensors that belong to a model's definition, not to its weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Constants(nn.Module):
    """Tables that follow a model's device but not its dtype, and are never saved.

    They are given on the CPU and keep their values in a model that is built on the meta device.
    """

    frequencies: Tensor
    rotary: Tensor

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        device = torch.get_default_device()  # of the weights beside them
        for name, tensor in tensors.items():
            placed = tensor if device.type == "meta" else tensor.to(device)
            self.register_buffer(name, placed, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Constants:
        # The device of the result alone counts, so to_empty does not lose the values either.
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if tensor.is_meta else tensor.to(moved.device)

        return super()._apply(move, recurse)
