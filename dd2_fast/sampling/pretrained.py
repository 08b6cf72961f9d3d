"""A sampler's networks in a folder as the model hubs have them, and from there."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoints import load, save_pretrained
from ..checkpoints.folder import is_folder_of_weights
from ..checkpoints.hub import TEACHER, fetched
from ..checkpoints.pretrained import LARGEST
from ..models.pretrained import Pushable
from .sinks import png
from .sources import bundled_names, bundled_path, run_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from .sampler import Sampler

_ROWS, _COLUMNS, _SIDE = 4, 8, 64  # of the card's picture; pixels that small images grow to


class PretrainedSampler(Pushable):
    """What `Sampler` has of the hubs' conventions.

    Attributes:
        run: the `run.json` of what the networks were loaded from; empty without one.
    """

    run: dict[str, Any]

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], *, revision: str | None = None, **settings: Any
    ) -> Self:
        """A sampler of the model in a folder, or in a repository of the Hub, which is fetched by
        `huggingface_hub` (extra `hub`).

        Its teacher is fetched and loaded only where teacher steps or Jacobi passes need it.

        Args:
            source: a path of whatever `checkpoints.load` reads, `owner/name`, or a bundled name.
            revision: a branch, tag or commit of a repository.
            settings: of `Sampler`; all others are those of `checkpoints.load`, as `tokenizer=`.

        Raises what those two raise, FileNotFoundError for a source that is none,
        ModuleNotFoundError where `huggingface_hub` is needed and not installed.
        """
        own = inspect.signature(cls.__init__).parameters
        config = {name: settings.pop(name) for name in list(settings) if name not in own}
        steps, passes = settings.get("teacher_steps", 0), settings.get("jacobi", 0)
        refines = (isinstance(steps, int) and steps > 1) or bool(passes)
        if isinstance(source, str) and source in bundled_names():
            source = bundled_path(source)
        path = fetched(source, revision, teacher=refines)
        model: Any = load(path, **config)
        if refines and is_folder_of_weights(path / TEACHER):
            model.teacher = load(path / TEACHER)
            model.teacher.tokenizer = model.tokenizer
        make: Any = cls
        sampler: Self = make(model, **settings)
        sampler.run = run_of(path)
        return sampler

    def save_pretrained(
        self: Any,
        folder: str | os.PathLike[str],
        *,
        run: Mapping[str, Any] | None = None,
        licence: str | None = None,
        picture: bool = True,
        max_shard_size: int = LARGEST,
    ) -> None:
        """Write the generator with its tokenizer as such a folder, the teacher, where there is one,
        in its folder `teacher`, and a card with a picture of 32 images.

        Args:
            run, licence, max_shard_size: as of `checkpoints.save_pretrained`; run None: that of
                the bundle the sampler was made of.
            picture: whether to draw the card's.

        Raises what that raises, and FileExistsError where a teacher lies there and this has none.
        """
        folder = Path(folder)
        if self.teacher is None and is_folder_of_weights(folder / TEACHER):
            raise FileExistsError(
                f"{folder}: expected no {TEACHER} there, as this sampler has none; delete it"
            )
        run = self.run if run is None else run
        write = functools.partial(
            save_pretrained, run=run, licence=licence, max_shard_size=max_shard_size
        )
        if self.teacher is not None:
            write(folder / TEACHER, self.teacher)
        drawn = _picture(self) if picture else None
        write(folder, self.generator, tokenizer=self.tokenizer, picture=drawn)


def _picture(sampler: Sampler) -> bytes:
    """A PNG of some images of every class in turn, small ones enlarged."""
    numbers = torch.arange(_ROWS * _COLUMNS, device="cpu")
    images = sampler(sampler.condition.draw("balanced", 0, numbers), output="np")
    scale = max(1, _SIDE // images.shape[1])
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    _, height, width, channels = images.shape
    rows = images.reshape(_ROWS, _COLUMNS, height, width, channels).swapaxes(1, 2)
    return png(rows.reshape(_ROWS * height, _COLUMNS * width, channels), "samples")
