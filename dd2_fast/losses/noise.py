"""Noise levels and noisy tokens of rectified flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.philox import image_normal, image_uniform


@dataclass(frozen=True)
class TimeDistribution:
    """Noise levels on ``[low, high]``: ``density`` is ``"uniform"`` or ``"linear"`` (∝ t)."""

    low: float = 0.02
    high: float = 1.0
    density: str = "uniform"

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high <= 1:
            raise ValueError(
                f"low, high: expected 0 < low < high <= 1, got {self.low}, {self.high}"
            )
        if self.density not in ("uniform", "linear"):
            raise ValueError(f"density: expected 'uniform' or 'linear', got {self.density!r}")

    def of(self, u: Tensor) -> Tensor:
        """Levels of uniforms ``u`` in [0, 1]: the inverse of the distribution function."""
        low, high = self.low, self.high
        if self.density == "linear":
            return (low**2 + (high**2 - low**2) * u).sqrt()
        return low + (high - low) * u


class ImageRandom:
    """Random numbers for each image of a batch: a function of (seed, image, calls so far).

    They depend neither on how the batch is split over processes and passes nor on the device.

    Args:
        seed: of the batch. images: int64 ``[B]``, which images of the batch, on the device where
            the numbers are wanted.
    """

    def __init__(self, seed: int, images: Tensor) -> None:
        self.seed, self.images, self._stream = seed, images, 1

    def uniform(self, *shape: int) -> Tensor:
        """float32 uniforms ``[B, *shape]`` in (0, 1]."""
        self._stream += 1
        count = math.prod(shape)
        u = image_uniform(self.seed, self.images, count, stream=self._stream)
        return u.view(len(self.images), *shape).float()

    def normal(self, *shape: int) -> Tensor:
        """float32 standard normals ``[B, *shape]``."""
        self._stream += 1
        return image_normal(self.seed, self.images, shape, stream=self._stream)


def add_noise(x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """``x_t = (1 - t) x + t noise`` for M draws: ``x [*, C]``, ``t [*, M]``, ``[*, M, C]``."""
    return torch.lerp(x[..., None, :].expand_as(noise), noise, t[..., None])


def draw_noisy(
    x: Tensor, draws: int, times: TimeDistribution, random: ImageRandom
) -> tuple[Tensor, Tensor, Tensor]:
    """``x_t [B, n, M, C]``, ``t [B, n, M]`` and the noise ``[B, n, M, C]`` of ``x [B, n, C]``."""
    t = times.of(random.uniform(x.shape[1], draws)).to(x.dtype)
    noise = random.normal(x.shape[1], draws, x.shape[2]).to(x.dtype)
    return add_noise(x, t, noise), t, noise
