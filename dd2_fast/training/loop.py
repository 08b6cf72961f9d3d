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
from tqdm import tqdm

from .state import RunState

Losses = Mapping[str, Tensor | float]
_SMOOTHING = 0.98
_REFRESH = 0.5


class Stage:
    """One stage: ``steps`` calls of :meth:`step` that change the run's models in place.

    A subclass puts whatever a resumed run needs besides the models into ``optimizers`` and
    ``buffers``.

    Args:
        name: of the stage, unique in the run.
        steps: how many.
        prepare: called once before the first step, for example to copy weights between models.
    """

    def __init__(self, name: str, steps: int, prepare: Callable[[], object] | None = None) -> None:
        self.name, self.steps, self._prepare = name, steps, prepare
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.buffers: dict[str, Tensor] = {}

    def prepare(self) -> None:
        """Bring the models into the state this stage starts from."""
        if self._prepare is not None:
            self._prepare()

    def step(self, index: int, rng: torch.Generator) -> Losses:
        """One update; the losses by name."""
        raise NotImplementedError

    def finish(self) -> None:
        """What remains after the last step."""

    def state_dict(self) -> dict[str, Any]:
        """Optimisers and buffers."""
        optimizers = {name: value.state_dict() for name, value in self.optimizers.items()}
        return {"optimizers": optimizers, "buffers": self.buffers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.buffers = dict(state["buffers"])


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop and saved its state first."""


def run_stages(stages: Sequence[Stage], state: RunState, *, progress: bool = True) -> None:
    """Run every stage that ``state`` does not have behind it.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after saving the state.
        FloatingPointError: a loss is not finite; the message has its stage, step and name.
    """
    with _stop_signals() as stopped:
        for index, stage in enumerate(stages):
            if stage.name not in state.done:
                _run_stage(stage, index, state, stopped, progress)
    state.save({})


def _run_stage(
    stage: Stage, index: int, state: RunState, stopped: threading.Event, progress: bool
) -> None:
    if state.begin(stage.name, index):
        stage.prepare()
    else:
        stage.load_state_dict(state.stage_state())
    began, before = time.monotonic(), state.seconds[stage.name]
    shown = 0.0
    bar = tqdm(
        total=stage.steps, initial=state.step, desc=stage.name, disable=not progress, mininterval=1
    )
    with bar:
        while state.step < stage.steps:
            losses = stage.step(state.step, state.rng)
            _accumulate(state.means, losses, stage.name, state.step)
            state.step += 1
            now = time.monotonic()
            state.seconds[stage.name] = before + now - began
            if progress and (now - shown > _REFRESH or state.step == stage.steps):
                bar.set_postfix({k: f"{v:.4g}" for k, v in state.means.items()}, refresh=False)
                shown = now
            bar.update()
            if stopped.is_set():
                state.save(stage.state_dict())
                raise Interrupted(
                    f"stopped in {stage.name} at step {state.step}; the same command continues"
                )
            if state.due():
                state.save(stage.state_dict())
    stage.finish()
    state.finish()


def _accumulate(means: dict[str, float], losses: Losses, stage: str, step: int) -> None:
    """Running means of the losses; raises at the first that is not finite."""
    for name, loss in losses.items():
        value = float(loss)
        if not math.isfinite(value):
            raise FloatingPointError(
                f"stage {stage}, step {step}: expected a finite loss {name!r}, got {value}"
            )
        means[name] = (
            value
            if step == 0 or name not in means
            else (_SMOOTHING * means[name] + (1 - _SMOOTHING) * value)
        )


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set (a second one interrupts at once).

    The handlers that were there come back after.
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
