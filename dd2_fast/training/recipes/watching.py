"""What a run shows while it trains: curves, and images of the average generator."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...condition import condition_of
from ...models.family import Tokenizer
from ...sampling.noise import image_noise
from ..config import Checked, Count
from ..loop import Stage, Watch
from ..parallel import Parallel
from ..state import RunState
from ..watch import RunLog, image_grid

_COLUMNS = 8
# Stages whose end is worth a look: they change the generator.
_SHOWN = ("distill", "aligned", "regression", "logits_start", "logits")


@dataclass(frozen=True)
class WatchConfig(Checked):
    """What a run shows, and how often it saves.

    Args:
        save_every: seconds between saved states.
        images_every: steps between grids of samples, 0 makes none. images: of a grid.
        tensorboard: whether to write its events; None: where it is installed.
    """

    save_every: float = 600.0
    images_every: Count = 1000
    images: int = 16
    tensorboard: bool | None = None


class RunWatch(Watch):
    """Writes the losses of every step and, now and then, a grid of samples to the run's log.

    Args:
        ema: the generator whose images are shown; None shows none.
        tokenizer: that decodes them; None: the one attached to ``ema``.
        keep: called whenever losses are reported, with the stage and its steps before and now.
    """

    def __init__(
        self,
        folder: Path,
        config: WatchConfig,
        ema: Any,
        parallel: Parallel,
        state: RunState,
        tokenizer: Tokenizer | None = None,
        keep: Callable[[Stage, int, int], None] | None = None,
    ) -> None:
        self.config, self.ema, self.parallel, self.keep = config, ema, parallel, keep
        self.tokenizer: Tokenizer | None = tokenizer or getattr(ema, "tokenizer", None)
        self.log = RunLog(folder, config.tensorboard, enabled=parallel.rank == 0)
        self.log.rewind(state.done, state.stage, state.step)
        self._since: tuple[str, int, float] | None = None
        self._reported = (state.stage, state.step)

    def __enter__(self) -> RunWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.close()

    def losses(
        self, stage: Stage, step: int, values: Mapping[str, float], rates: Mapping[str, float]
    ) -> None:
        named = {
            f"grad/{name.removesuffix('_norm')}" if name.endswith("_norm") else name: value
            for name, value in values.items()
        }
        named.update({f"lr/{name}": rate for name, rate in rates.items()})
        self.log.scalars(stage.name, step + 1, named)

    def reported(self, stage: Stage, step: int) -> None:
        now = time.perf_counter()
        if stage.batch and self._since is not None and self._since[0] == stage.name:
            rate = stage.batch * (step - self._since[1]) / max(now - self._since[2], 1e-9)
            self.log.scalars(stage.name, step, {"images_per_second": rate})
        every = self.config.images_every if self.ema is not None else 0
        before = self._reported[1] if self._reported[0] == stage.name else 0
        due = every and (step // every > before // every or step == stage.steps)
        if due and stage.name in _SHOWN:
            self.show(stage.name, step)
        if self.keep is not None:
            self.keep(stage, before, step)
        self._reported = (stage.name, step)
        now = time.perf_counter()
        self._since = (stage.name, step, now)

    @torch.no_grad()
    def show(self, name: str, step: int) -> None:
        """A grid of the average generator's images, always of the same noise and labels."""
        ema, tokenizer, device = self.ema, self.tokenizer, self.parallel.device
        assert ema is not None and tokenizer is not None
        index = torch.arange(self.config.images, device=device)
        noise = image_noise(0, index, (ema.num_tokens, ema.dimension))
        with self.parallel.autocast():
            x = ema(noise, condition_of(ema).draw("balanced", 0, index))
        if self.parallel.rank == 0:
            images = tokenizer.decode(x.to(tokenizer.codebook.dtype))
            self.log.images(name, step, image_grid(images, _COLUMNS))
