"""The study in a folder, which several processes may work on: an Optuna journal and its locks."""

from __future__ import annotations

import json
import math
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...checkpoints.files import write_atomic
from ...checkpoints.locks import LOCK, NoLocksError, release, take
from ...differences import described, differences
from .space import Space

JOURNAL = "study.journal"
_NAME = "tune"
_FORMAT = 1
_SETTINGS, _FLOOR = "settings", "floor"
_STARTUP = 8  # trials at random before the sampler has something to go by
_POLL = 0.05
OWN = "own"  # marks the trial of the configuration's own values, which is never pruned
ENDED, CPU, DISTANCES = "ended", "cpu_seconds", "distances"


def import_optuna() -> Any:
    """Optuna, silent; ImportError that names the extra where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError(
            "the search is Optuna's, which is not installed: pip install 'dd2-fast[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Study:
    """Trials in ``folder``, made or opened.

    A trial belongs to the process that has its lock. One whose process died, or was interrupted, is
    marked as failed and its values are tried again; failed ones count for nothing.

    Args:
        folder: that exists. settings: what a study is of; another's is refused.
        space: which values a trial may have. own: of the first trial, None: no such.
        reports: at which parts of a training distances are reported, whole numbers.
        seed: of the search.

    Raises:
        ImportError: Optuna is not installed.
        ValueError: the folder holds a study of other settings (each is named), or the journal is
            damaged. OSError: it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        space: Space,
        own: Mapping[str, Any] | None,
        reports: Sequence[int],
        seed: int,
    ) -> None:
        self._optuna = import_optuna()
        self.folder, self.space = folder, space
        self._held: dict[int, int] = {}
        with self.alone():
            self._study = self._open(json.loads(json.dumps(dict(settings))), own, reports, seed)

    def _open(
        self,
        settings: dict[str, Any],
        own: Mapping[str, Any] | None,
        reports: Sequence[int],
        seed: int,
    ) -> Any:
        optuna = self._optuna
        path = self.folder / JOURNAL
        journal = optuna.storages.journal
        lock = journal.JournalFileSymlinkLock(str(path))
        if path.exists():
            _cut_half_line(path, lock)
        try:
            storage = optuna.storages.JournalStorage(journal.JournalFileBackend(str(path), lock))
            study = optuna.create_study(
                storage=storage,
                study_name=_NAME,
                load_if_exists=True,
                direction="minimize",
                sampler=_sampler(optuna, seed),
                pruner=optuna.pruners.SuccessiveHalvingPruner(
                    min_resource=min(reports), reduction_factor=2, min_early_stopping_rate=0
                ),
            )
            found = study.user_attrs.get(_SETTINGS)
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{path}: expected the journal of a study, got one that cannot be read "
                f"({type(error).__name__}); give another --out"
            ) from error
        wanted = {"format": _FORMAT, **settings}
        if found is None:
            study.set_user_attr(_SETTINGS, wanted)
            if own is not None:
                study.enqueue_trial(dict(own), user_attrs={OWN: True})
        elif different := differences(found, wanted):
            raise ValueError(
                f"{self.folder}: expected the configuration and the search of the study there; "
                f"different: {described(different, 'there', 'now')}; give the same, or another "
                "--out"
            )
        return study

    @property
    def trials(self) -> list[Any]:
        """All of them, in order, those of other processes too."""
        found: list[Any] = self._study.get_trials(deepcopy=False)
        return found

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The block of one process at a time."""
        path = self.folder / f".study{LOCK}"
        while True:
            try:
                handle = take(path)
            except NoLocksError:
                yield
                return
            if handle is not None:
                break
            time.sleep(_POLL)
        try:
            yield
        finally:
            release(path, handle)

    def next(self, most: int) -> Any | None:
        """A new trial, None where ``most`` are made or in progress."""
        state = self._optuna.trial.TrialState
        with self.alone():
            self._bury()
            counted = (state.COMPLETE, state.PRUNED, state.RUNNING)
            if sum(trial.state in counted for trial in self.trials) >= most:
                return None
            trial = self._study.ask()
            with suppress(NoLocksError):
                handle = take(self._lock(trial.number))
                assert handle is not None, "the number is new"
                self._held[trial.number] = handle
            return trial

    def values(self, trial: Any) -> dict[str, Any]:
        """The settings that a trial has."""
        return {name: searched.suggest(trial, name) for name, searched in self.space.items()}

    def complete(self, trial: Any, value: float) -> None:
        """The trial ended with this distance."""
        self._tell(trial, self._optuna.trial.TrialState.COMPLETE, value)

    def prune(self, trial: Any, why: str) -> None:
        """The trial was given up."""
        trial.set_user_attr(ENDED, why)
        self._tell(trial, self._optuna.trial.TrialState.PRUNED)

    def lose(self, trial: Any, *, again: bool) -> None:
        """The trial came to nothing; ``again``: its values are to be tried once more."""
        if again:
            self._queue(trial.params, trial.user_attrs)
        self._tell(trial, self._optuna.trial.TrialState.FAIL)

    def floor(self) -> dict[str, float] | None:
        """The distance between two draws of the teacher, where it has been measured."""
        found: dict[str, float] | None = self._study.user_attrs.get(_FLOOR)
        return found

    def set_floor(self, distances: Mapping[str, float]) -> None:
        """Keep the distance between two draws of the teacher."""
        self._study.set_user_attr(_FLOOR, dict(distances))

    def best(self) -> Any | None:
        """The complete trial of the smallest distance."""
        state = self._optuna.trial.TrialState
        complete = [trial for trial in self.trials if trial.state == state.COMPLETE]
        finite = [trial for trial in complete if math.isfinite(trial.value)]
        return min(finite, key=lambda trial: trial.value, default=None)

    def _tell(self, trial: Any, state: Any, value: float | None = None) -> None:
        self._study.tell(trial.number, value, state=state)
        if (handle := self._held.pop(trial.number, None)) is not None:
            release(self._lock(trial.number), handle)

    def _queue(self, values: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
        if len(values) == len(self.space):
            marks = {OWN: True} if attributes.get(OWN) else None
            self._study.enqueue_trial(dict(values), user_attrs=marks)

    def _lock(self, number: int) -> Path:
        return self.folder / f".trial-{number:04d}{LOCK}"

    def _bury(self) -> None:
        """Mark trials of dead processes as failed and queue their values."""
        state = self._optuna.trial.TrialState
        for trial in self.trials:
            if trial.state != state.RUNNING or trial.number in self._held:
                continue
            path = self._lock(trial.number)
            try:
                handle = take(path)
            except NoLocksError:
                continue
            if handle is None:
                continue
            release(path, handle)
            shutil.rmtree(trial_folder(self.folder, trial.number), ignore_errors=True)
            self._queue(trial.params, trial.user_attrs)
            self._study.tell(trial.number, state=state.FAIL)


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial trains."""
    return folder / f"trial-{number:04d}"


def _sampler(optuna: Any, seed: int) -> Any:
    """Tree-structured Parzen estimators whose randomness is a function of the seed and a trial's
    number, so that processes draw different ones and a study can be repeated."""

    class Numbered(optuna.samplers.BaseSampler):
        def __init__(self) -> None:
            self._inner = self._of(0)

        def _of(self, number: int) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.samplers.TPESampler(
                    seed=(seed * 1_000_003 + number) % (1 << 32),
                    n_startup_trials=_STARTUP,
                    multivariate=True,
                    constant_liar=True,
                )

        def before_trial(self, study: Any, trial: Any) -> None:
            self._inner = self._of(trial.number)
            self._inner.before_trial(study, trial)

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self._inner.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, space: Any) -> Any:
            return self._inner.sample_relative(study, trial, space)

        def sample_independent(self, study: Any, trial: Any, name: str, of: Any) -> Any:
            return self._inner.sample_independent(study, trial, name, of)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            self._inner.after_trial(study, trial, state, values)

    return Numbered()


def _cut_half_line(path: Path, lock: Any) -> None:
    """Cut what follows the last line break, which a kill left."""
    lock.acquire()
    try:
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            write_atomic(path, data[:whole])
    finally:
        lock.release()
