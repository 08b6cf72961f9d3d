"""Runs stages one after the other: progress, saved state, interruption, bad losses."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..progress import progress_bar
from .parallel import Parallel
from .state import RunState
from .trained import Trained

Losses = Mapping[str, Tensor | float]
_Made = tuple[Losses, dict[str, float]]  # of a step: losses and learning rates
_SMOOTHING = 0.98
_REFRESH = 0.5


class Stage:
    """One stage: ``steps`` calls of :meth:`step` that change the run's models in place.

    A subclass puts the networks it trains into ``trained``, and whatever else a resumed run needs
    besides the models into ``buffers``.

    Args:
        name: of the stage, unique in the run.
        steps: how many.
        prepare: called once before the first step, for example to copy weights between models.
        batch: images of a step, where that is a number to show.
    """

    def __init__(
        self,
        name: str,
        steps: int,
        prepare: Callable[[], object] | None = None,
        batch: int | None = None,
    ) -> None:
        self.name, self.steps, self.batch, self._prepare = name, steps, batch, prepare
        self.trained: dict[str, Trained] = {}
        self.buffers: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}

    def prepare(self) -> None:
        """Bring the models into the state this stage starts from."""
        if self._prepare is not None:
            self._prepare()

    def step(self, index: int, rng: torch.Generator) -> Losses:
        """One update; the losses by name, some of which may be reported at some steps only."""
        raise NotImplementedError

    def finish(self) -> None:
        """What remains after the last step."""

    def seen(self, **value: Tensor) -> Tensor:
        """Remember, in order of arrival, which tensors of a step are finite."""
        ((name, tensor),) = value.items()
        self._sums.pop(name, None)
        self._sums[name] = tensor.detach().sum(dtype=torch.float32)
        return tensor

    def first_bad(self) -> str | None:
        """The first of the last step's seen tensors that had a NaN or infinity."""
        return next((name for name, sum in self._sums.items() if not sum.isfinite()), None)

    def take_rates(self) -> dict[str, float]:
        """The learning rates of the networks that were updated since the last call."""
        rates = {k: v.rate for k, v in self.trained.items() if v.rate is not None}
        for trained in self.trained.values():
            trained.rate = None
        return rates

    def state_dict(self) -> dict[str, Any]:
        """Optimisers and buffers."""
        optimizers = {name: value.state_dict() for name, value in self.trained.items()}
        return {"optimizers": optimizers, "buffers": self.buffers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        for name, trained in self.trained.items():
            trained.load_state_dict(state["optimizers"][name])
        self.buffers = dict(state["buffers"])


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop and saved its state first."""


class Watch:
    """Is told of every step of a run; this one ignores it."""

    def losses(
        self, stage: Stage, step: int, values: Mapping[str, float], rates: Mapping[str, float]
    ) -> None:
        """The losses of a step, the mean over the processes, and its learning rates."""

    def reported(self, stage: Stage, step: int) -> None:
        """``step`` steps of the stage are made and their losses reported."""


def run_stages(
    stages: Sequence[Stage],
    state: RunState,
    *,
    progress: bool = True,
    parallel: Parallel | None = None,
    watch: Watch | None = None,
) -> None:
    """Run every stage that ``state`` does not list as done.

    The last state saved is the last stage's after its last step, with its optimisers.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after saving the state.
        FloatingPointError: a loss is not finite; the message gives its stage, step and name and
            the first tensor of the step that was not. The last saved state remains.
        OSError: the state cannot be written; the last one remains.
    """
    parallel = parallel or Parallel()
    with _stop_signals() as stopped:
        for index, stage in enumerate(stages):
            if stage.name not in state.done:
                _run_stage(stage, index, state, stopped, progress, parallel, watch or Watch())
                if stage is stages[-1]:
                    state.save(stage.state_dict())
                stage.finish()
                state.finish()


def _run_stage(
    stage: Stage,
    index: int,
    state: RunState,
    stopped: threading.Event,
    progress: bool,
    parallel: Parallel,
    watch: Watch,
) -> None:
    if state.begin(stage.name, index):
        stage.prepare()
    else:
        stage.load_state_dict(state.stage_state())
    began, before = time.monotonic(), state.seconds[stage.name]
    shown = 0.0
    pending: list[_Made] = []
    images = stage.batch or 1
    bar = progress_bar(
        stage.steps * images,
        show=progress and parallel.rank == 0,
        initial=state.step * images,
        desc=stage.name,
        unit="image" if stage.batch else "step",
        mininterval=1,
    )
    with bar:
        while state.step < stage.steps:
            pending.append((stage.step(state.step, state.rng), stage.take_rates()))
            state.step += 1
            bar.update(images)
            if len(pending) < parallel.config.report_every and state.step < stage.steps:
                continue
            _report(pending, stage, state, parallel, watch)
            now = time.monotonic()
            state.seconds[stage.name] = before + now - began
            if now - shown > _REFRESH or state.step == stage.steps:
                bar.set_postfix({k: f"{v:.4g}" for k, v in state.means.items()}, refresh=False)
                shown = now
            stop, due = parallel.any(stopped.is_set(), state.due())
            if stop or due:
                state.save(stage.state_dict())
            if stop:
                raise Interrupted(
                    f"stopped in {stage.name} at step {state.step}; the same command continues"
                )


def _report(
    pending: list[_Made], stage: Stage, state: RunState, parallel: Parallel, watch: Watch
) -> None:
    """Read the losses of the last steps, average them over the processes, and pass them on."""
    names = [(i, name) for i, (losses, _) in enumerate(pending) for name in losses]
    if names:
        values = [torch.as_tensor(pending[i][0][n], dtype=torch.float32) for i, n in names]
        flat = parallel.mean(torch.stack([v.to(parallel.device) for v in values])).tolist()
        first = state.step - len(pending)
        by_step: dict[int, dict[str, float]] = {}
        for (i, name), value in zip(names, flat, strict=True):
            by_step.setdefault(first + i, {})[name] = value
        for step, losses in by_step.items():
            _accumulate(state.means, losses, stage, step)
            watch.losses(stage, step, losses, pending[step - first][1])
    pending.clear()
    watch.reported(stage, state.step)


def _accumulate(means: dict[str, float], losses: Losses, stage: Stage, step: int) -> None:
    """Running means of the losses; raises at the first that is not finite."""
    for name, loss in losses.items():
        value = float(loss)
        if not math.isfinite(value):
            bad = stage.first_bad()
            where = f"; the first tensor that was not finite is {bad}" if bad else ""
            raise FloatingPointError(
                f"stage {stage.name}, step {step}: expected a finite {name!r}, got {value}{where}"
            )
        means[name] = (
            value
            if step == 0 or name not in means
            else (_SMOOTHING * means[name] + (1 - _SMOOTHING) * value)
        )


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set (a second one interrupts at once).

    The previous handlers are restored afterwards.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt("stopped at once; the last saved state remains")
        stopped.set()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
