"""Which host memory launches may touch: what torch tensors hand out as their pointers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

_LARGEST = 2**32  # bytes kept as one extent; of a tensor beyond that, rows that lie far apart
_KEPT = 64  # an operator's call has fewer tensors; those of earlier calls are no longer its own


class Tracked:
    """Extents ``(address, bytes)`` of the tensors whose ``data_ptr()`` was asked for last."""

    def __init__(self) -> None:
        self.extents: list[tuple[int, int]] = []
        self._data_ptr: Any = torch.Tensor.data_ptr

    def add(self, tensor: torch.Tensor) -> int:
        """The tensor's address, whose memory launches may touch from now on."""
        address = self._data_ptr(tensor)
        if tensor.numel():
            last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            extent = address, (last + 1) * tensor.element_size()
            if extent[1] > _LARGEST:
                for row in tensor:
                    self.add(row)
            else:
                self.extents = [*(e for e in self.extents[1 - _KEPT :] if e != extent), extent]
        return address

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Tracks every tensor of the process."""
        patch.setattr(torch.Tensor, "data_ptr", lambda tensor: self.add(tensor))
