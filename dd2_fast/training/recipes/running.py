"""What every recipe does around its stages: the folder, the saved state, the log, the report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ...checkpoints.bundle import SETTINGS
from ...checkpoints.files import check_writable, write_atomic
from ...checkpoints.locks import locked
from ...models.family import Tokenizer
from ...processes import together
from ..loop import Stage, run_stages
from ..parallel import Parallel
from ..provenance import provenance
from ..state import RunState, clear_finished, extended, lasting_settings
from .watching import RunWatch


@dataclass
class Made:
    """What a recipe makes of its configuration.

    Attributes:
        modules: every model that a saved state holds, by name.
        stages: called once the saved state is loaded, with the names of the stages behind it.
        write: writes the models' files when all stages are done; what the report says of them.
        ema: the generator whose images are shown, None for none. tokenizer: that decodes them;
            None: the one attached to ``ema``.
        keep: called on every process with a stage, the number of its steps at the call before and
            now. done: stages that are behind the run from its start.
        teacher: whose draws the generator's images stand for; None: the one among ``modules``.
    """

    modules: Mapping[str, nn.Module]
    stages: Callable[[Collection[str]], list[Stage]]
    write: Callable[[], Mapping[str, Any]]
    ema: Any = None
    tokenizer: Tokenizer | None = None
    keep: Callable[[Stage, int, int], None] | None = None
    done: Collection[str] = ()
    teacher: Any = None


@dataclass
class Guide:
    """How a program runs a part of a recipe: no network and no report is written.

    Attributes:
        look: called in the place of ``Made.keep``, with what the recipe made and its stages first.
        until: names of stages before the first of which to stop. The state there becomes the file
            ``fork``.
        begin: such a file, from which a run goes on whose settings are its own but for
            ``differing``. Stages draw from their own generators, so that it ends as a run of its
            settings from the start does.
    """

    look: Callable[[Made, Sequence[Stage], Stage, int, int], None] | None = None
    until: Collection[str] = ()
    fork: Path | None = None
    begin: Path | None = None
    differing: Collection[str] = ()

    def stages(self, stages: list[Stage]) -> list[Stage]:
        """Those to run."""
        late = [i for i, stage in enumerate(stages) if stage.name in self.until]
        return stages[: late[0]] if late else stages

    def keep(self, made: Made, stages: Sequence[Stage]) -> Callable[[Stage, int, int], None] | None:
        """``look``, as a run calls it."""
        look = self.look
        if look is None:
            return None
        return lambda stage, before, step: look(made, stages, stage, before, step)


_guide: ContextVar[Guide | None] = ContextVar("guide", default=None)


@contextmanager
def guided(guide: Guide) -> Iterator[None]:
    """Every recipe that runs in the block follows ``guide``."""
    token = _guide.set(guide)
    try:
        yield
    finally:
        _guide.reset(token)


def carry_out(
    recipe: str,
    config: Any,
    out: Path,
    make: Callable[[], Made],
    *,
    parts: Collection[str],
    inputs: Collection[str] = (),
    parallel: Parallel,
    progress: bool,
    keep: bool = False,
    last_steps: str | None = None,
) -> dict[str, Any]:
    """Make a recipe's networks, run its stages and write its files; the report in ``run.json``.

    ``run.json`` is written last: its presence says that the run is finished. Until then the state
    files are there, and the same call continues.

    Args:
        config: with ``seed``, ``watch`` and ``overwrite``. parts: names of the files that are
            written, without ``.safetensors``. inputs: paths that are read.
        parallel: the processes, each of which calls this with the folder locked.
        keep: whether the last state stays in the folder. last_steps: the setting, steps of the last
            stage, that may be raised for a finished run whose last state was kept.
    """
    extends = None
    if parallel.rank == 0:
        names = [f"{part}.safetensors" for part in parts]
        extends = last_steps and extended(out, config, last_steps)
        finished = (out / SETTINGS).is_file() and extends is None
        clear_finished(out, finished, names, config.overwrite, inputs)
    extends = parallel.first(extends)
    made = make()
    settings, every = lasting_settings(config), config.watch.save_every
    state = RunState(
        out,
        made.modules,
        settings,
        seed=config.seed,
        every=every,
        parallel=parallel,
        extends=extends,
    )
    guide, told_of = _guide.get(), made.keep
    if not state.resume(replace=config.overwrite):
        state.done = list(made.done)
        if guide is not None and guide.begin is not None:
            state.begin_from(guide.begin, guide.differing)
    stages = made.stages(state.done)
    if guide is not None:
        stages, told_of = guide.stages(stages), guide.keep(made, stages)
    with RunWatch(out, config.watch, made.ema, parallel, state, made.tokenizer, told_of) as watch:
        run_stages(stages, state, progress=progress, parallel=parallel, watch=watch)
    if guide is not None:
        if guide.fork is not None:
            state.fork(guide.fork)
        return {}
    told = made.write()
    if keep:
        state.keep()
    kept = dataclasses.asdict(config)
    del kept["overwrite"]
    report = {
        "recipe": recipe,
        "settings": kept,
        "provenance": provenance(),
        "losses": state.losses,
        "seconds": state.seconds,
        **told,
    }
    if parallel.rank == 0:
        text = json.dumps(report, indent=2, sort_keys=True) + "\n"
        write_atomic(out / SETTINGS, text.encode())
    if not keep:
        state.remove()
    return report


def carry_out_alone(
    recipe: str,
    config: Any,
    out: Path,
    make: Callable[[], Made],
    *,
    parts: Collection[str],
    progress: bool,
) -> dict[str, Any] | None:
    """:func:`carry_out` on the first process of a job; None on the others, which wait.

    Raises:
        OSError: ``out`` cannot be written, or another run has it.
    """
    with together() as job:
        if job.rank > 0:
            return None
        check_writable(out)
        with locked(out):
            parallel = Parallel.alone(recipe)
            return carry_out(
                recipe, config, out, make, parts=parts, parallel=parallel, progress=progress
            )
