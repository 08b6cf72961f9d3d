"""VAR's scales: where their tokens lie, and the linear maps between a scale and the last one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class ScaleTables(NamedTuple):
    """The maps of all ``S`` scales at once, each padded to the last grid ``g x g``.

    ``place [S g g]``: token that a cell reads, a copy of the scale's edge where it is padded.
    ``up [S, g, g]``: bicubic interpolation along an axis; padded columns are zero.
    ``down [S, g, g]``: area average from ``g`` to the next scale; padded rows are zero.
    ``take [n - 1]``: cells of ``down``'s output that are the next scales' inputs.
    """

    place: Tensor
    up: Tensor
    down: Tensor
    take: Tensor


@dataclass(frozen=True)
class Scales:
    """The sides of VAR's square token maps, smallest first: ``n = sum side^2`` tokens."""

    sides: tuple[int, ...]

    @classmethod
    def of(cls, patch_nums: Sequence[int]) -> Scales:
        """The scales of a list such as ``[1, 2, 3, 4]``; ValueError or TypeError unless they rise
        from 1."""
        if isinstance(patch_nums, str) or not isinstance(patch_nums, Sequence):
            raise TypeError(
                f"patch_nums: expected a list of integers, got {type(patch_nums).__name__}"
            )
        sides = tuple(patch_nums)
        if any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
            raise TypeError(f"patch_nums: expected a list of integers, got {list(sides)}")
        rising = all(low < high for low, high in zip(sides, sides[1:], strict=False))
        if len(sides) < 2 or sides[0] != 1 or not rising:
            raise ValueError(
                "patch_nums: expected at least two sides that start at 1 and rise, "
                f"got {list(sides)}"
            )
        return cls(sides)

    @property
    def count(self) -> int:
        """S."""
        return len(self.sides)

    @property
    def grid(self) -> int:
        """Side of the last scale."""
        return self.sides[-1]

    @property
    def slices(self) -> tuple[slice, ...]:
        """The tokens of every scale."""
        return token_slices([side**2 for side in self.sides])

    @property
    def num_tokens(self) -> int:
        """n."""
        return sum(side**2 for side in self.sides)

    def phi_indices(self, count: int) -> tuple[int, ...]:
        """Which of ``count`` shared convolutions each scale uses: the nearest of their ticks.

        The ticks are ``linspace(1/12, 11/12, 4)`` for the released four, else the centres of
        ``count`` bins; scale ``k`` is at ``k / (S-1)``. Ties fall as they do in double precision.
        """
        edge = 1 / 3 / count if count == 4 else 1 / 2 / count
        ticks = np.linspace(edge, 1 - edge, count)
        last = self.count - 1
        return tuple(int(np.argmin(np.abs(ticks - k / last))) for k in range(self.count))

    def ramp(self) -> list[float]:
        """``k / (S-1)`` for the scale ``k`` of each of the n tokens."""
        last = self.count - 1
        return [k / last for k, side in enumerate(self.sides) for _ in range(side**2)]

    def tables(self, device: torch.device, dtype: torch.dtype) -> ScaleTables:
        """The maps between the scales and the last one, on ``device``."""
        g = self.grid
        cells = torch.arange(g, device="cpu")
        place, take = [], []
        up = torch.zeros(self.count, g, g, dtype=torch.float64, device="cpu")
        down = torch.zeros_like(up)
        for k, (side, tokens) in enumerate(zip(self.sides, self.slices, strict=True)):
            inside = cells.clamp(max=side - 1)
            place.append(tokens.start + side * inside[:, None] + inside)
            up[k, :, :side] = _axis_map(side, g, "bicubic")
            if k:
                down[k - 1, :side] = _axis_map(g, side, "area")
                take.append((k - 1) * g * g + g * cells[:side, None] + cells[:side])
        return ScaleTables(
            torch.cat([p.flatten() for p in place]).to(device),
            up.to(device, dtype),
            down.to(device, dtype),
            torch.cat([t.flatten() for t in take]).to(device),
        )


def resize(maps: Tensor, side: int, mode: str) -> Tensor:
    """``maps [B, C, h, w]`` at ``side x side``, ``"bicubic"`` (up) or ``"area"`` (down)."""
    return maps if maps.shape[-1] == side else F.interpolate(maps, size=(side, side), mode=mode)


def _axis_map(source: int, target: int, mode: str) -> Tensor:
    """The matrix ``[target, source]`` that resizes one axis, read off unit vectors."""
    unit = torch.eye(source, dtype=torch.float64, device="cpu")
    if source == target:
        return unit
    column = unit[:, None, :, None]
    return F.interpolate(column, size=(target, 1), mode=mode)[:, 0, :, 0].T


def token_slices(lengths: Sequence[int]) -> tuple[slice, ...]:
    """Where runs of the given lengths lie, one after the other."""
    ends = accumulate(lengths)
    return tuple(slice(end - n, end) for n, end in zip(lengths, ends, strict=True))
