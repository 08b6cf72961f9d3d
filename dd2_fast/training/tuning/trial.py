"""A trial: a training by a recipe, looked at on its way, from where trials begin to differ."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ..loop import Stage
from ..recipes.running import Guide, Made, guided
from .judge import Judge
from .space import Space, changing, late_stages, plain
from .study import trial_folder
from .tuner import PARTS, Report

BASE, FORK = "base", "fork.pt"
_POLL = 1.0


class Trials:
    """Makes the trials of a configuration in the folder of its study.

    What comes before the first stage that a searched setting changes is trained once, as
    ``base/fork.pt``, by the process that is first; the others wait for it.

    Args:
        recipe: the module with its ``run``. config: of the study. space: what is searched.
        out: the study's folder. judge: measures the distances. progress: whether to show bars.
    """

    def __init__(
        self,
        recipe: ModuleType,
        config: Any,
        space: Space,
        out: Path,
        judge: Judge,
        *,
        progress: bool = False,
    ) -> None:
        self.recipe, self.config, self.out = recipe, config, out
        self.judge, self.progress = judge, progress
        self.late = late_stages(space, config)
        self.differing = changing(space)
        self.floor: dict[str, float] | None = None

    def __call__(self, config: Any, number: int, report: Report) -> Mapping[str, float]:
        """Train by ``config``; the distances at the end.

        Raises:
            Pruned: ``report`` did. FloatingPointError: a loss or an image is not finite. What the
                recipe raises; KeyboardInterrupt: on SIGINT or SIGTERM.
        """
        folder = trial_folder(self.out, number)
        found: dict[str, float] = {}

        def look(made: Made, stages: Sequence[Stage], stage: Stage, before: int, step: int) -> None:
            if stage is not stages[-1]:
                return
            for part in parts_between(before, step, stage.steps):
                found.clear()
                found.update(self.judge(made))
                if self.floor is None and part + 1 == len(PARTS):
                    self.floor = self.judge.floor(made)
                report(part, found)

        guide = Guide(look, begin=self._fork(), differing=self.differing)
        try:
            with guided(guide):
                self.recipe.run(plain(config), folder, progress=self.progress)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return found

    def _fork(self) -> Path | None:
        """The state that all trials begin from, None where they differ from the start."""
        if not self.late:
            return None
        folder = self.out / BASE
        fork = folder / FORK
        guide = Guide(until=self.late, fork=fork)
        while not fork.is_file():
            try:
                with guided(guide):
                    self.recipe.run(plain(self.config), folder, progress=self.progress)
            except BlockingIOError:  # another process makes it
                time.sleep(_POLL)
        return fork


def parts_between(before: int, step: int, steps: int) -> Collection[int]:
    """The numbers of `PARTS` of ``steps`` that lie after ``before`` and not after ``step``."""
    ends = [max(1, round(part * steps)) for part in PARTS]
    return [i for i, end in enumerate(ends) if before < end <= step]
