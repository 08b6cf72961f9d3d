"""Draws DD1's pairs of noise and tokens from the teacher, once for all stages."""

from __future__ import annotations

import torch

from ...losses import TeacherScore, flow_pairs
from ..loop import Losses, Stage
from ..samples.pool import PairPool


class PairsStage(Stage):
    """Fills the pool by solving the flow ODE token by token."""

    def __init__(self, pool: PairPool, score: TeacherScore, batch: int, ode_steps: int) -> None:
        self.size = min(batch, len(pool.labels))
        super().__init__("pairs", -(-len(pool.labels) // self.size), batch=self.size)
        self.pool, self.score, self.ode_steps = pool, score, ode_steps

    @torch.no_grad()
    def step(self, index: int, rng: torch.Generator) -> Losses:
        pool = self.pool
        part = slice(index * self.size, (index + 1) * self.size)
        noise = torch.randn(pool.noise[part].shape, generator=rng).to(pool.noise)
        labels = torch.randint(self.score.teacher.num_classes, noise.shape[:1], generator=rng)
        labels = labels.to(pool.labels)
        pool.noise[part], pool.labels[part] = noise, labels
        pool.tokens[part] = flow_pairs(noise, labels, self.score, self.ode_steps).int()
        return {}
