"""Keys and values of the tokens read so far."""

from __future__ import annotations

from torch import Tensor


class KVCache:
    """Keys and values ``[B, heads, n, size]`` of one block, filled as tokens come."""

    def __init__(self, batch: int, heads: int, length: int, size: int, like: Tensor) -> None:
        self.keys = like.new_empty(batch, heads, length, size)
        self.values = like.new_empty(batch, heads, length, size)
        self.filled = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the next ``m`` tokens' keys and values; returns all so far."""
        start, self.filled = self.filled, self.filled + keys.shape[2]
        self.keys[:, :, start : self.filled] = keys
        self.values[:, :, start : self.filled] = values
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]
