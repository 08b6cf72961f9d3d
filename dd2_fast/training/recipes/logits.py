"""The stages of a logit student."""

from __future__ import annotations

from collections.abc import Callable

from ...losses import TeacherScore
from ...models import LogitStudent
from ..config import LogitsConfig
from ..loop import Stage
from ..parallel import Parallel
from ..samples.draws import Source
from ..stages import LogitStage


def logit_stages(
    config: LogitsConfig,
    student: LogitStudent,
    ema: LogitStudent,
    score: TeacherScore,
    pool: Source | None,
    prepare: Callable[[], object],
    parallel: Parallel,
) -> list[Stage]:
    """The student at the tokens of DD1's pairs, then at its own.

    Args:
        pool: of the pairs; None where ``config.pair_steps`` is 0.
        prepare: called before the first of these stages.
    """

    def stage(name: str, steps: int, rate: float, pool: Source | None, first: bool) -> Stage:
        start = prepare if first else None
        return LogitStage(name, steps, rate, student, ema, score, pool, config, start, parallel)

    start, further = config.pair_steps, config.steps
    stages = [stage("logits_start", start, config.pair_rate, pool, True)] if start else []
    return [*stages, stage("logits", further, config.rate, None, not stages)]
