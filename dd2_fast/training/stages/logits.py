"""The logit student: the teacher's logits from noise, at DD1's tokens or at the student's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...losses import TeacherScore, logit_distillation_loss
from ...models import LogitStudent
from ..config import LogitsConfig
from ..loop import Losses, Stage
from ..parallel import Parallel
from ..samples.draws import Source
from ..schedule import ramp, update_ema
from ..trained import Terms, Trained
from .inputs import fresh_inputs, pair_inputs


class LogitStage(Stage):
    """``KL(teacher | student)`` of every token, the teacher's given codes, the student's given the
    noise that they come from.

    Args:
        rate: the learning rate's peak.
        pool: of pairs, whose tokens are the teacher's prefix (off-policy); None: noise is new and
            the prefix is what the student makes of it (on-policy).
    """

    def __init__(
        self,
        name: str,
        steps: int,
        rate: float,
        student: LogitStudent,
        ema: LogitStudent,
        score: TeacherScore,
        pool: Source | None,
        config: LogitsConfig,
        prepare: Callable[[], object] | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        super().__init__(name, steps, prepare, config.batch)
        self.rate, self.student, self.ema = rate, student, ema
        self.score, self.pool, self.config = score, pool, config
        self.parallel = parallel or Parallel(device=next(student.parameters()).device)
        self.trained = {
            "generator": Trained(student, self.parallel, config.betas, config.weight_decay)
        }

    def step(self, index: int, rng: torch.Generator) -> Losses:
        config, student = self.config, self.trained["generator"]
        if self.pool is None:
            inputs = fresh_inputs(self.student, config.batch, rng, self.parallel.device)
        else:
            inputs = pair_inputs(self.pool, config.batch, rng)

        def loss(part: Tensor) -> tuple[Tensor, Terms]:
            noise, labels, tokens = inputs(part)
            logits = self.seen(logits=student(noise, labels, True))
            if tokens is None:
                # A token is -1 where logits were not finite, which the loss reports.
                tokens = self.student.tokens(noise, logits.detach()).clamp(min=0)
            teacher = self.score(tokens, labels)
            self.seen(teacher=teacher.logits)
            value = logit_distillation_loss(logits, teacher).mean()
            return value, {"kl": value}

        factor = ramp(index, self.steps, warmup=config.warmup, hold=config.hold)
        terms = student.update("generator", self.rate * factor, config.batch, loss)
        update_ema(self.ema, self.student, index, config.ema_decay)
        return terms
