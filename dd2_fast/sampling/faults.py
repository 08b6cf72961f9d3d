"""Images that a network spoiled with a NaN or infinity are named, not returned."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..condition import Condition, Rows
from ..models.checks import NotFiniteError


class Faults:
    """The images of a call whose values were not finite after a stage.

    On a CPU a stage's values are looked at when they are made. Elsewhere a flag an image is made
    beside them, and all flags are read once, by `check` at the end of the call.
    """

    def __init__(self, condition: Condition) -> None:
        self.condition = condition
        self._flags: list[tuple[str, Tensor, Tensor, Rows, int | Tensor]] = []

    def look(
        self, stage: str, values: Tensor, indices: Tensor, labels: Rows, seed: int | Tensor = 0
    ) -> None:
        """Take note of values [B, ...] of images with indices [B], conditions and a seed, or seeds
        [B], which are named then.

        A sum of values of sane size is finite if and only if they are; tokens that could not be
        drawn are -1.
        """
        if _is_here(values):
            if values.is_floating_point() and math.isfinite(values.sum()):
                return
            self._raise_if(stage, _spoiled(values), indices, labels, seed)
        else:
            self._flags.append((stage, _spoiled(values), indices, labels, seed))

    def check(self) -> None:
        """Raise NotFiniteError for the first spoiled image, with the first stage that spoiled it.

        It waits for the device, so not while a CUDA graph is captured, when there are no values.
        """
        if not self._flags:
            return
        every = torch.cat([spoiled for _, spoiled, *_ in self._flags])
        if every.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return
        if bool(every.any()):
            for stage, *flags in self._flags:
                self._raise_if(stage, *flags)

    def _raise_if(
        self, stage: str, spoiled: Tensor, indices: Tensor, labels: Rows, seed: int | Tensor
    ) -> None:
        rows = spoiled.nonzero()[:, 0].tolist()
        if not rows:
            return
        told = self.condition.about(labels, rows[0])
        own = f" of seed {int(seed[rows[0]])}" if isinstance(seed, Tensor) else ""
        others = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        raise NotFiniteError(
            f"{stage}: expected finite values, got a NaN or infinity in image "
            f"{int(indices[rows[0]])}{own}{told and f' ({told})'}{others}; its weights have one, "
            "or a dtype too narrow"
        )


def _is_here(values: Tensor) -> bool:
    """Whether a look at values waits for no device."""
    return values.device.type == "cpu"


def _spoiled(values: Tensor) -> Tensor:
    """bool [B]."""
    if not values.is_floating_point():
        return values.flatten(1).amin(1) < 0
    wide = torch.promote_types(values.dtype, torch.float32)
    return ~values.flatten(1).sum(1, dtype=wide).isfinite()
