"""Draws DD1's pairs of noise and tokens from the teacher, once for all stages."""

from __future__ import annotations

import torch

from ...condition import condition_of
from ...losses import TeacherScore, flow_pairs
from ..loop import Losses, Stage
from ..samples.pool import PairPool


class PairsStage(Stage):
    """Fills the pool by solving the flow ODE token by token."""

    def __init__(self, pool: PairPool, score: TeacherScore, batch: int, ode_steps: int) -> None:
        self.size = min(batch, len(pool))
        super().__init__("pairs", -(-len(pool) // self.size), batch=self.size)
        self.pool, self.score, self.ode_steps = pool, score, ode_steps

    @torch.no_grad()
    def step(self, index: int, rng: torch.Generator) -> Losses:
        pool = self.pool
        part = slice(index * self.size, (index + 1) * self.size)
        noise = torch.randn(pool.noise[part].shape, generator=rng).to(pool.noise)
        condition = condition_of(self.score.teacher)
        labels = condition.to(condition.random(len(noise), rng), noise.device)
        pool.put(part, noise, flow_pairs(noise, labels, self.score, self.ode_steps), labels)
        return {}
