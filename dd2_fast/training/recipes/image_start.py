"""What a run over images keeps at the end of its stage 1, and another may start from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
from torch import Tensor

from ... import checkpoints
from ...checkpoints import save
from ...checkpoints.checksums import checksums
from ...checkpoints.container import open_file
from ...checkpoints.files import replacing
from ..loop import Stage
from ..settings import flatten
from .keeping import STAGE1, start_folder, write_network
from .stage2 import copy_weights

if TYPE_CHECKING:
    from .image_networks import Networks
    from .images import ImagesConfig

DONE = ("tokenizer", "classifier", "teacher", "pairs", "adaptation", "stage1")
PAIRS = "pairs.safetensors"
_LATER = ("regression.", "dd1.", "distill.", "logits.", "evaluation.", "execution.", "watch.")
_FREE = ("seed", "device", "last", "method", "start", "overwrite", "source.data", "data.workers")


def stage1_settings(config: ImagesConfig, classes: Iterable[str]) -> dict[str, Any]:
    """What the end of stage 1 depends on, but for the seed and the place of the images.

    Args:
        classes: of the images.
    """
    flat = {
        name: value
        for name, value in flatten(config).items()
        if name not in _FREE and not name.startswith(_LATER)
    }
    settings: dict[str, Any] = json.loads(json.dumps({**flat, "data.classes": list(classes)}))
    return settings


def kept_files(networks: Networks) -> list[str]:
    """The files that :class:`Keeper` writes, the one that says that all are there last."""
    names = ["tokenizer", "classifier", "teacher", *(["reader"] if networks.adapting else [])]
    files = [f"{name}.safetensors" for name in names]
    return [*files, *([PAIRS] if len(networks.pool) else []), STAGE1]


class Keeper:
    """Writes what later runs may start from as soon as stage 1 ends.

    Args:
        out: the run's folder. networks: of the run. metadata: of every file.
        settings: :func:`stage1_settings`.
    """

    def __init__(
        self,
        out: Path,
        networks: Networks,
        metadata: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> None:
        self.out, self.networks = out, networks
        self.metadata, self.settings = dict(metadata), dict(settings)

    def __call__(self, stage: Stage, before: int, step: int) -> None:
        """``step`` steps of a stage are made."""
        if stage.name == "stage1" and step == stage.steps:
            self.write()

    def write(self) -> None:
        """Write the files; every process must call it."""
        networks = self.networks
        copy_weights(networks.guidance, networks.stage1)
        if networks.parallel.rank == 0:
            for file in kept_files(networks)[:-1]:
                if file == PAIRS:
                    _write_pairs(self.out / PAIRS, networks.pool.state_dict())
                else:
                    save(self.out / file, getattr(networks, Path(file).stem), self.metadata)
        metadata = {**self.metadata, "settings": self.settings}
        write_network(self.out / STAGE1, networks.stage1, networks.parallel, metadata)


def _write_pairs(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file with checksums; it holds no model, so it has no header of ours."""
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    sums = {key: text for key, text in checksums(tensors, "").items() if text}
    with replacing(path) as temporary:
        try:
            safetensors.torch.save_file(dict(tensors), temporary, sums)
        except safetensors.SafetensorError as error:
            raise OSError(f"{path}: cannot write: {error}") from error


def load_start(start: str, networks: Networks, settings: Mapping[str, Any]) -> None:
    """Give networks what another run had at the end of its stage 1.

    Args:
        start: ``"RUN:stage1"``. settings: :func:`stage1_settings` of this run.

    Raises:
        FileNotFoundError: the run has not kept its stage 1.
        ValueError: it was made with other settings (each is named), or a file is damaged.
    """
    files = kept_files(networks)
    folder = start_folder(start, files, settings)
    for file in files:
        if file == PAIRS:
            networks.pool.load_state_dict(dict(open_file(folder / PAIRS).tree))
        elif file == STAGE1:
            weights = checkpoints.load(folder / STAGE1).state_dict()
            networks.parallel.load_model(networks.guidance, weights)
        else:
            weights = checkpoints.load(folder / file).state_dict()
            getattr(networks, Path(file).stem).load_state_dict(weights)
