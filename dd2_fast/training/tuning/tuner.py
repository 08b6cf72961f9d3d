"""Trials one after the other, until as many are made as are wanted or the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...checkpoints.files import check_writable
from ..settings import flatten
from ..state import lasting_settings
from .report import write_reports
from .space import Space, described, own_values, trial_config
from .study import CPU, DISTANCES, OWN, Study

# Parts of the last stage after which a trial is compared with the others, of which half go on; a
# report's step is its part of the smallest.
PARTS = (0.25, 0.5, 1.0)
STEPS = tuple(round(part / PARTS[0]) for part in PARTS)


class Pruned(Exception):
    """A trial is given up, as it is worse than the others were at this point."""


class Report(Protocol):
    """Called at each of `PARTS` with its number and the distances so far; raises `Pruned`."""

    def __call__(self, part: int, distances: Mapping[str, float]) -> None: ...


class Evaluate(Protocol):
    """Trains by a configuration and returns the distances at the end, of which the objective is
    one. ``number``: the trial's."""

    def __call__(self, config: Any, number: int, report: Report) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Task:
    """What is searched.

    Attributes:
        recipe: its name. config: its configuration. space: the settings to be searched.
        objective: which of the distances is to be small. judged: how they are measured, by name.
    """

    recipe: str
    config: Any
    space: Space
    objective: str
    judged: Mapping[str, Any]

    def settings(self) -> dict[str, Any]:
        """What two studies must agree in to be one."""
        return {
            "recipe": self.recipe,
            "objective": self.objective,
            "parts": list(PARTS),
            **{f"judged.{name}": value for name, value in self.judged.items()},
            **{f"search.{name}": text for name, text in described(self.space).items()},
            **lasting_settings(self.config),
        }


def tune(
    task: Task,
    out: Path,
    evaluate: Evaluate,
    *,
    trials: int,
    minutes: float | None = None,
    say: Callable[[str], object] = print,
    floor: Callable[[], Mapping[str, float] | None] = lambda: None,
) -> Study:
    """Work on the study in ``out`` until ``trials`` are made, by all processes together.

    Args:
        evaluate: makes a trial. minutes: after which this process begins no other.
        say: is told what a person wants to read. floor: the distance between two draws of the
            teacher, asked for after a trial.

    Raises:
        ImportError: Optuna is not installed. ValueError: the folder holds another study; what
            ``evaluate`` raises. KeyboardInterrupt: the trial in progress is tried again by the same
            command.
    """
    check_writable(out)
    own = own_values(task.space, task.config)
    seed = int(flatten(task.config).get("seed", 0))
    study = Study(out, task.settings(), task.space, own, STEPS, seed)
    if own is None:
        say("the configuration's own values are outside of the search and are not tried")
    end = None if minutes is None else time.monotonic() + 60 * minutes
    while end is None or time.monotonic() < end:
        trial = study.next(trials)
        if trial is None:
            break
        _make(task, study, trial, evaluate, say)
        if study.floor() is None and (found := floor()) is not None:
            study.set_floor(found)
        with study.alone():
            write_reports(out, task, study)
    return study


def _make(
    task: Task, study: Study, trial: Any, evaluate: Evaluate, say: Callable[[str], object]
) -> None:
    values = study.values(trial)
    told = f"trial {trial.number}: " + ", ".join(f"{n}={_short(v)}" for n, v in values.items())
    own = bool(trial.user_attrs.get(OWN))

    def report(part: int, distances: Mapping[str, float]) -> None:
        trial.report(distances[task.objective], STEPS[part])
        worse = trial.should_prune()  # is asked of all: others are compared with what it sees
        if worse and part + 1 < len(PARTS) and not own:
            raise Pruned(f"at {PARTS[part]:g} of the last stage")

    began = time.process_time()
    try:
        config = trial_config(task.config, values)
        distances = evaluate(config, trial.number, report)
    except (Pruned, FloatingPointError) as error:
        trial.set_user_attr(CPU, time.process_time() - began)
        study.prune(trial, str(error))
        say(f"{told}; given up: {error}")
        return
    except BaseException as error:
        with suppress(OSError):
            study.lose(trial, again=isinstance(error, KeyboardInterrupt))
        raise
    trial.set_user_attr(CPU, time.process_time() - began)
    trial.set_user_attr(DISTANCES, {name: float(value) for name, value in distances.items()})
    study.complete(trial, float(distances[task.objective]))
    say(f"{told}; {task.objective} {distances[task.objective]:.4f}{' (own values)' * own}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
