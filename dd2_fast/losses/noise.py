"""Noise levels and noisy tokens of rectified flow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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

    def sample(self, shape: tuple[int, ...], rng: torch.Generator, like: Tensor) -> Tensor:
        """Levels of ``shape`` on the device of ``like``, drawn on the generator's device."""
        u = torch.rand(shape, generator=rng, device=rng.device)
        low, high = self.low, self.high
        if self.density == "linear":
            u = (low**2 + (high**2 - low**2) * u).sqrt()
        else:
            u = low + (high - low) * u
        return u.to(like.device, like.dtype)


def add_noise(x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """``x_t = (1 - t) x + t noise`` for M draws: ``x [*, C]``, ``t [*, M]``, ``[*, M, C]``."""
    return torch.lerp(x[..., None, :].expand_as(noise), noise, t[..., None])


def draw_noisy(
    x: Tensor, draws: int, times: TimeDistribution, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """``x_t [*, M, C]``, ``t [*, M]`` and the noise ``[*, M, C]`` of tokens ``x [*, C]``."""
    shape = (*x.shape[:-1], draws)
    t = times.sample(shape, rng, x)
    noise = torch.randn((*shape, x.shape[-1]), generator=rng, device=rng.device)
    noise = noise.to(x.device, x.dtype)
    return add_noise(x, t, noise), t, noise
