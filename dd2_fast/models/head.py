"""The flow head: velocity of a noisy token given its features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .constants import Constants
from .kernels import Linear

_FREQUENCIES = 16


def time_embedding(t: Tensor | float, frequencies: Tensor) -> Tensor:
    """``[cos(100 t w), sin(100 t w)]`` for ``t [*]`` and angular frequencies ``w [K]``."""
    angles = 100.0 * (t[..., None] if isinstance(t, Tensor) else t) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class FlowHead(nn.Module):
    """MAR's per-token MLP with AdaLN, predicting the velocity ``v(x_t, t, f)``.

    ``c = SiLU(MLP(time) + Linear(f))``; ``h = Linear(x_t)``; blocks
    ``h += gate * MLP(LN(h) (1 + scale) + shift)``; ``v = Linear(LN(h) (1 + scale) + shift)``.
    Modulation and output start at zero, so the first prediction is ``v = 0``. One Linear makes the
    modulation of every block.
    """

    def __init__(self, *, dimension: int, features: int, width: int, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        # An explicit device: the values are wanted in a model built on the meta device too.
        steps = torch.arange(_FREQUENCIES, dtype=torch.float32, device="cpu")
        rates = torch.exp(-math.log(1000.0) * steps / (_FREQUENCIES - 1))
        self.constants = Constants(frequencies=rates)
        self.time = nn.Sequential(Linear(2 * _FREQUENCIES, width), nn.SiLU(), Linear(width, width))
        self.condition = Linear(features, width)
        self.input = Linear(dimension, width)
        self.modulation = Linear(width, (3 * blocks + 2) * width)
        self.expand = nn.ModuleList(Linear(width, width) for _ in range(blocks))
        self.contract = nn.ModuleList(Linear(width, width) for _ in range(blocks))
        self.output = Linear(width, dimension)
        for layer in (self.modulation, self.output):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x_t: Tensor, t: Tensor | float, features: Tensor) -> Tensor:
        """Velocity, of the shape of ``x_t``.

        Args:
            x_t: noisy tokens ``[*, C]``, or ``[*, M, C]`` for M draws that share a feature.
            t: noise level in (0, 1], broadcastable to ``[*]`` or ``[*, M]``.
            features: ``[*, D]``.
        """
        condition = self.condition(features)
        if x_t.ndim == features.ndim + 1:
            condition = condition[..., None, :]
        elif x_t.ndim != features.ndim:
            raise ValueError(
                f"x_t: expected shape [*, C] or [*, M, C] for features {list(features.shape)}, "
                f"got {list(x_t.shape)}"
            )
        # LlamaGen's codes, and noise like them, stay in float32 when the networks are cast.
        dtype = self.input.weight.dtype
        # In bfloat16 an angle of 100 would be off by 0.2.
        wide = torch.promote_types(dtype, torch.float32)
        if isinstance(t, Tensor):
            t = t.to(x_t.device, wide)
        time = time_embedding(t, self.constants.frequencies.to(wide))
        c = F.silu(self.time(time.to(dtype)) + condition)
        modulation = self.modulation(c).chunk(3 * self.blocks + 2, dim=-1)
        h = self.input(x_t.to(dtype))
        shape = h.shape[-1:]
        for i, (expand, contract) in enumerate(zip(self.expand, self.contract, strict=True)):
            shift, scale, gate = modulation[3 * i : 3 * i + 3]
            modulated = torch.addcmul(shift, F.layer_norm(h, shape), 1 + scale)
            h = torch.addcmul(h, gate, contract(F.silu(expand(modulated))))
        shift, scale = modulation[-2:]
        return self.output(torch.addcmul(shift, F.layer_norm(h, shape), 1 + scale))
