"""The saved state of a run: every model, the current stage's optimisers, its step and random state.

A file written whole and renamed, and the one before it; a run continued from either gives what an
uninterrupted run gives.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints.bundle import SETTINGS
from ..checkpoints.checksums import check_archive
from ..checkpoints.files import remove_leftovers, replacing
from ..checkpoints.screen import screen_zip
from ..differences import described, differences
from ..reading import shown
from .config import AdaptationConfig, LogitsConfig
from .parallel import Parallel
from .settings import flatten

STATE = "state.pt"
PREVIOUS = "state.previous.pt"
FINAL = "final.pt"
_FORMAT = 2
# Settings that came later, with the values that do what earlier versions did.
_LATER: dict[str, Any] = {
    **{"start": "", "family": "var", "pairs.count": 0, "pairs.batch": 250, "tokenizer.latents": 64},
    **{f"adaptation.{k}": v for k, v in flatten(AdaptationConfig(steps=0)).items()},
    **{f"logits.{k}": v for k, v in flatten(LogitsConfig()).items()},
}
# Settings that change rounding, speed or what is shown; a run may go on with others.
_FREE = ("overwrite", "device", "execution.", "watch.")


class RunState:
    """Models, position and history of a run, kept in ``folder/state.pt``.

    The state before it is ``state.previous.pt``, which is taken where the newer file is missing or
    damaged. On several processes all of them save and resume; the first writes.

    Args:
        folder: the run's output folder.
        modules: every model that any stage reads or trains, by name.
        settings: flat settings; a state with others is refused.
        seed: of the run; each stage draws from its own generator.
        extends: the setting (steps of the last stage) in which ``folder/final.pt`` of a finished
            run may differ.
        every: seconds between saves. parallel: the processes.
    """

    def __init__(
        self,
        folder: Path,
        modules: Mapping[str, nn.Module],
        settings: Mapping[str, Any],
        *,
        seed: int,
        every: float = 30.0,
        parallel: Parallel | None = None,
        extends: str | None = None,
    ) -> None:
        self.path, self.previous, self.final = folder / STATE, folder / PREVIOUS, folder / FINAL
        self.extends = extends
        self.parallel = parallel or Parallel()
        self.modules, self.settings = dict(modules), dict(settings)
        self.every = every
        self.done: list[str] = []
        self.stage: str | None = None
        self.step = 0
        self.means: dict[str, float] = {}
        self.losses: dict[str, dict[str, float]] = {}
        self.seconds: dict[str, float] = {}
        self.rng = torch.Generator()
        self.seed = seed
        self._stage_state: dict[str, Any] = {}
        self._saved_at = time.monotonic()

    def begin(self, name: str, index: int) -> bool:
        """Enter a stage; True when it starts at its first step, False when it continues."""
        if self.stage == name:
            return False
        self.stage, self.step, self.means, self._stage_state = name, 0, {}, {}
        self.seconds[name] = 0.0
        self.rng.manual_seed(1_000_003 * (index + 1) + self.seed)
        return True

    def finish(self) -> None:
        """Leave the current stage and keep the running means of its losses."""
        if self.stage is None:
            raise RuntimeError("finish: expected a stage in progress")
        self.done.append(self.stage)
        self.losses[self.stage] = dict(self.means)
        self.stage, self._stage_state = None, {}

    def stage_state(self) -> dict[str, Any]:
        """What :meth:`save` stored for the stage in progress."""
        return self._stage_state

    def due(self) -> bool:
        """Whether the last save is ``every`` seconds old."""
        return time.monotonic() - self._saved_at >= self.every

    def save(self, stage_state: Mapping[str, Any]) -> None:
        """Write everything to the state file; the one there becomes the previous.

        Raises:
            OSError: it cannot be written (a full disk); both files are as before.
        """
        state = {
            "format": _FORMAT,
            "settings": self.settings,
            "modules": {n: self.parallel.model_state(m) for n, m in self.modules.items()},
            "done": self.done,
            "stage": self.stage,
            "step": self.step,
            "means": self.means,
            "losses": self.losses,
            "seconds": self.seconds,
            "rng": self.rng.get_state(),
            "stage_state": dict(stage_state),
        }
        if self.parallel.rank == 0:
            with replacing(self.path) as temporary:
                _write(state, temporary)
                if self.path.exists():
                    os.replace(self.path, self.previous)
        self._saved_at = time.monotonic()

    def resume(self, *, replace: bool = False) -> bool:
        """Load the newest state that is whole; with ``replace``, ignore one that does not fit.

        The first process chooses the file, and the others read the same.

        Raises:
            ValueError: both are damaged, or belong to a run with other settings; another process
                cannot read the file.
        """
        path, state = self._choose(replace) if self.parallel.rank == 0 else (None, None)
        name = self.parallel.first(path and path.name)
        if name is None:
            return False
        if state is None:
            state = self._read(self.path.with_name(name))
        self._take(state)
        return True

    def begin_from(self, path: Path, differing: Collection[str]) -> None:
        """Take the state of another run, whose settings are this one's but for ``differing``.

        Raises:
            ValueError: it is damaged, or other settings differ.
        """
        self._take(self._read(path, differing))

    def _take(self, state: Mapping[str, Any]) -> None:
        for name, module in self.modules.items():
            self.parallel.load_model(module, state["modules"][name])
        self.done, self.stage, self.step = state["done"], state["stage"], state["step"]
        self.means, self.losses = state["means"], state["losses"]
        self.seconds = state["seconds"]
        self.rng.set_state(state["rng"])
        self._stage_state = state["stage_state"]

    def _choose(self, replace: bool) -> tuple[Path | None, dict[str, Any] | None]:
        """The file to go on from and what is in it."""
        remove_leftovers(self.path)
        files = [path for path in (self.path, self.previous, self.final) if path.exists()]
        for path in files:
            try:
                return path, self._read(path)
            except _DamagedState as error:
                if replace:
                    break
                if path is files[-1]:
                    raise ValueError(str(error)) from error
                warnings.warn(str(error), RuntimeWarning, stacklevel=2)
            except ValueError:
                if not replace:
                    raise
                break
        if replace:
            self.remove()
        return None, None

    def _read(self, path: Path, differing: Collection[str] = ()) -> dict[str, Any]:
        """The saved state, of this format and with this run's settings but for ``differing``."""
        try:
            screen_zip(path)
            check_archive(path)
            state = torch.load(path, weights_only=True, map_location="cpu")
            found = state["format"]
        except Exception as error:
            raise _DamagedState(
                f"{path}: expected a saved training state, got a file that cannot be read "
                f"({type(error).__name__}); delete it to start anew"
            ) from error
        if found != _FORMAT:
            raise ValueError(f"{path}: expected state format {_FORMAT}, got {shown(found)}")
        saved = state["settings"]
        if path == self.final and self.extends is not None:
            saved = {**saved, self.extends: self.settings[self.extends]}
        saved, wanted = (
            {name: value for name, value in settings.items() if name not in differing}
            for settings in (saved, self.settings)
        )
        check_settings(path, saved, wanted)
        return state

    def fork(self, path: Path) -> None:
        """Save the state between two stages as ``path``, in place of the others."""
        self.save({})
        if self.parallel.rank == 0:
            os.replace(self.path, path)
            self.previous.unlink(missing_ok=True)

    def keep(self) -> None:
        """The state at the end of the last stage stays as ``final.pt``, and no other does."""
        if self.parallel.rank == 0:
            os.replace(self.path, self.final)
            self.previous.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the state files: the run is finished."""
        if self.parallel.rank == 0:
            self.path.unlink(missing_ok=True)
            self.previous.unlink(missing_ok=True)
            self.final.unlink(missing_ok=True)


class _DamagedState(ValueError):
    """A state file that cannot be read."""


def _write(state: dict[str, Any], path: Path) -> None:
    """As torch.save; a failing write raises its OSError, not what torch makes of it."""
    with open(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def lasting_settings(config: Any) -> dict[str, Any]:
    """The settings of a recipe that a continued run must share, by dotted name.

    A setting that came later counts only where it has another value than the one that does what
    earlier versions did, as their states do not have it.
    """
    flat = {name: value for name, value in flatten(config).items() if not name.startswith(_FREE)}
    return _that_count(flat)


def _that_count(flat: Mapping[str, Any]) -> dict[str, Any]:
    return {name: v for name, v in flat.items() if name not in _LATER or v != _LATER[name]}


def check_settings(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise a ValueError that names every setting in which a state and this run differ."""
    different = differences(_that_count(saved), _that_count(wanted))
    if different:
        raise ValueError(
            f"{path}: expected the settings of the run it continues; different: "
            f"{described(different, 'saved', 'now')}; give the same settings, or "
            "--set overwrite=true to start anew"
        )


def extended(folder: Path, config: Any, steps: str) -> str | None:
    """``steps`` where ``config`` is a finished run's but for more of them, else None.

    Args:
        folder: of the run, with ``run.json`` and ``final.pt``.
        steps: the setting, steps of the last stage.
    """
    if config.overwrite or not (folder / FINAL).is_file():
        return None
    try:
        report = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        different = differences(lasting_settings(report["settings"]), lasting_settings(config))
        ((name, (found, wanted)),) = different.items()
        return steps if name == steps and wanted > found else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def clear_finished(
    folder: Path,
    finished: bool,
    names: Iterable[str],
    overwrite: bool,
    inputs: Iterable[str] = (),
) -> None:
    """Refuse a finished run's folder, or with ``overwrite`` delete ``run.json`` and ``names``.

    An interrupted run's state stays: the same command continues it. ``inputs`` are paths that the
    run reads (empty: none), of which a ValueError names one that it would replace.
    """
    names = list(names)
    replaced = {os.path.realpath(folder / name) for name in names}
    for path in filter(None, inputs):
        real = os.path.realpath(path)
        if real in replaced or (finished and real == os.path.realpath(folder)):
            raise ValueError(
                f"{path}: expected an input that the run does not replace in {folder}; choose "
                "another folder for it"
            )
    if not finished:
        return
    if not overwrite:
        raise FileExistsError(
            f"{folder}: expected an empty folder or an interrupted run, found a finished one; "
            "choose another folder, or --set overwrite=true"
        )
    for name in (SETTINGS, STATE, PREVIOUS, FINAL, *names):
        (folder / name).unlink(missing_ok=True)
