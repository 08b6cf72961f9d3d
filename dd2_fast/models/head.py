"""The flow head: velocity of a noisy token given its features."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import add_norm_modulate
from .constants import Constants
from .kernels import Linear, has_fused_norm

EPSILON = 1e-5
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
        modulation = self.modulation(c)
        h = self.input(x_t.to(dtype))
        if has_fused_norm(h):
            return self.output(fused_blocks(self, h, modulation, ones=False))
        modulation = modulation.chunk(3 * self.blocks + 2, dim=-1)
        shape = h.shape[-1:]
        for i, (expand, contract) in enumerate(zip(self.expand, self.contract, strict=True)):
            shift, scale, gate = modulation[3 * i : 3 * i + 3]
            modulated = torch.addcmul(shift, F.layer_norm(h, shape), 1 + scale)
            h = torch.addcmul(h, gate, contract(F.silu(expand(modulated))))
        shift, scale = modulation[-2:]
        return self.output(torch.addcmul(shift, F.layer_norm(h, shape), 1 + scale))


def fused_blocks(head: Any, h: Tensor, modulation: Tensor, *, ones: bool) -> Tensor:
    """What the output layer reads of ``h [*, W]``: the blocks with every addition, norm and
    modulation as one kernel.

    Args:
        head: a :class:`FlowHead`, or a part with its blocks.
        modulation: ``[*, (3 blocks + 2) W]``, of which the last axis but one may be 1.
        ones: whether the scales have the ones of ``1 + scale`` in them.
    """
    shape = h.shape
    if modulation.shape[:-1] == shape[:-1]:
        h, modulation = h.flatten(0, -2)[None], modulation.flatten(0, -2)[None]
    else:  # what shares a modulation is an image
        h, modulation = (x[None].flatten(0, -3) for x in (h, modulation))
    rows = modulation.chunk(3 * head.blocks + 2, dim=-1)
    factor = "weight" if ones else "scale"

    def normed(h: Tensor, i: int, **added: Tensor) -> tuple[Tensor, Tensor]:
        given: dict[str, Any] = {"shift": rows[3 * i], factor: rows[3 * i + 1], **added}
        return add_norm_modulate(h, eps=EPSILON, **given)

    h, y = normed(h, 0)
    for i, (expand, contract) in enumerate(zip(head.expand, head.contract, strict=True)):
        branch = contract(F.silu(expand(y)))
        h, y = normed(h, i + 1, branch=branch, gate=rows[3 * i + 2])
    return y.view(shape)
