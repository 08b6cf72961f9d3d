"""Learning rates by step, and the running average of weights."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer


def ramp(
    step: int, steps: int, *, warmup: int = 0, hold: float = 0.5, floor: float = 0.05
) -> float:
    """A factor: linear warm-up, constant until ``hold`` of all steps, then linear to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    start = hold * steps
    if step <= start:
        return 1.0
    return 1.0 - (1.0 - floor) * (step - start) / max(steps - start, 1.0)


def cosine(step: int, steps: int, *, warmup: int = 0, floor: float = 0.02) -> float:
    """A factor: linear warm-up, then half a cosine from 1 down to ``floor`` at the last step."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup - 1, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every parameter group the learning rate ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def adam(
    module: nn.Module, rate: float, betas: tuple[float, float], weight_decay: float = 0.0
) -> torch.optim.AdamW:
    """Fused Adam over the parameters of ``module``, with decoupled weight decay."""
    return torch.optim.AdamW(
        module.parameters(), lr=rate, betas=betas, weight_decay=weight_decay, fused=True
    )


@torch.no_grad()
def update_ema(average: nn.Module, module: nn.Module, iteration: int, decay: float) -> None:
    """``average += (1 - d) (module - average)`` with ``d = min(decay, (it + 1) / (it + 10))``."""
    rate = min(decay, (iteration + 1) / (iteration + 10))
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - rate)
