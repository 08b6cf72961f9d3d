"""Mean and covariance of feature vectors, added up in parts, and of statistics files."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Mean ``[D]`` and unbiased covariance ``[D, D]`` in float64 of vectors that come in parts.

    Parts are merged by their own means (Chan et al., 1979), so that nothing large cancels.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Add vectors ``[m, D]``."""
        # Not every device has float64; CUDA's is as fast as the features come.
        device = features.device if features.is_cuda else "cpu"
        x = features.detach().to(device, torch.float64)
        mean = x.mean(0)
        centred = x - mean
        scatter = centred.T @ centred
        if not self.count:
            self.count, self.mean, self._scatter = len(x), mean, scatter
            return
        total = self.count + len(x)
        apart = mean - self.mean
        self._scatter += scatter + torch.outer(apart, apart) * (self.count * len(x) / total)
        self.mean = self.mean + apart * (len(x) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """``[D, D]``, of at least two vectors."""
        return self._scatter / (self.count - 1)
