"""Weights kept along the way: stage 1's, which other runs may start from, and averages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ... import checkpoints
from ...checkpoints import save
from ...differences import described, differences
from ...models.family import as_module
from ...models.network import BackboneNetwork
from ..loop import Stage
from ..parallel import Parallel
from ..settings import flatten

if TYPE_CHECKING:
    from .networks import Networks

STAGE1, TEACHER = "stage1.safetensors", "teacher.safetensors"
WEIGHTS = "weights"
_CHANGING = ("distill", "aligned", "logits_start", "logits")  # stages, of the average generator
_SECTIONS = ("network.", "samples.", "score.", "stage1.")


def write_network(
    path: Path,
    network: BackboneNetwork,
    parallel: Parallel,
    metadata: Mapping[str, Any],
    tokenizer: nn.Module | None = None,
) -> None:
    """Write a network of a run, whole; every process must call it."""
    weights = parallel.model_state(network)
    if parallel.rank == 0:
        with torch.device("meta"):
            whole = type(network)(**network.config)
        whole.load_state_dict(weights, assign=True)
        save(path, whole, metadata, tokenizer=tokenizer)


def stage1_settings(config: Any, teacher: str, adapting: bool) -> dict[str, Any]:
    """What the end of stage 1 depends on, but for the seed and the samples that were drawn.

    Args:
        config: of the recipe. teacher: the SHA-256 of its weights.
        adapting: whether stage 0 comes first.
    """
    sections = (*_SECTIONS, "adaptation.") if adapting else _SECTIONS
    flat = {k: v for k, v in flatten(config).items() if k.startswith(sections)}
    return {"teacher_sha256": teacher, **flat}


class Keeper:
    """Is told of every step that a run has reported, on every process, and writes what is due.

    Stage 1's guidance network is kept at its end, with the teacher of stage 0; the average
    generator every ``every`` steps of the stages that change it.

    Args:
        out: the run's folder. networks: of the run. metadata: of every file.
        settings: :func:`stage1_settings`, or None to keep nothing of stage 1.
        every: steps, 0 keeps no averages. tokenizer: that goes with them.
    """

    def __init__(
        self,
        out: Path,
        networks: Networks,
        metadata: Mapping[str, Any],
        settings: Mapping[str, Any] | None,
        every: int,
        tokenizer: nn.Module | None,
    ) -> None:
        self.out, self.networks, self.metadata = out, networks, metadata
        self.settings, self.every, self.tokenizer = settings, every, tokenizer

    def __call__(self, stage: Stage, before: int, step: int) -> None:
        """``step`` steps of a stage are made; ``before`` were when this was called last."""
        networks = self.networks
        parallel: Parallel = networks.parallel
        if stage.name == "stage1" and step == stage.steps and self.settings is not None:
            metadata = {**self.metadata, "settings": self.settings}
            if networks.adapting and parallel.rank == 0:
                save(self.out / TEACHER, as_module(networks.teacher), self.metadata)
            write_network(self.out / STAGE1, networks.guidance, parallel, metadata)
        changes = stage.name in _CHANGING or networks.config.method == "dd1"
        if self.every and changes and step // self.every > before // self.every:
            if parallel.rank == 0:
                (self.out / WEIGHTS).mkdir(exist_ok=True)
            path = self.out / WEIGHTS / f"{stage.name}-{step:07d}.safetensors"
            write_network(path, networks.ema, parallel, self.metadata, self.tokenizer)


def load_stage1(start: str, networks: Networks, settings: Mapping[str, Any]) -> None:
    """Give networks what stage 1 of another run left.

    Args:
        start: ``"RUN:stage1"``, the folder of a run. settings: :func:`stage1_settings` of this one.

    Raises:
        FileNotFoundError: the run has not kept its stage 1.
        ValueError: it was made with other settings (each is named), or a file is damaged.
    """
    files = (STAGE1, *((TEACHER,) if networks.adapting else ()))
    folder = start_folder(start, files, settings)
    parallel: Parallel = networks.parallel
    parallel.load_model(networks.guidance, checkpoints.load(folder / STAGE1).state_dict())
    if networks.adapting:
        networks.teacher.load_state_dict(checkpoints.load(folder / TEACHER).state_dict())


def check_start(start: str) -> None:
    """ValueError unless ``start`` is empty or ``RUN:stage1``."""
    folder, _, stage = start.rpartition(":")
    if start and (not folder or stage != "stage1"):
        raise ValueError(f"start: expected RUN:stage1, got {start!r}")


def start_folder(start: str, files: Iterable[str], settings: Mapping[str, Any]) -> Path:
    """The folder in ``"RUN:stage1"``, where ``files`` and the settings are as they should be.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: stage 1 was made with other settings (each is named).
    """
    folder = Path(start.rpartition(":")[0])
    for name in files:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"start: expected a run that has kept its stage 1, found no {name} in {folder}"
            )
    found = checkpoints.read_header(folder / STAGE1)["metadata"].get("settings")
    if not isinstance(found, Mapping):
        raise ValueError(
            f"start: expected a stage 1 that keeps its settings, got {folder / STAGE1} without"
        )
    if different := differences(found, settings):
        raise ValueError(
            f"start: expected a stage 1 with this run's settings in {folder}; different: "
            f"{described(different, 'there', 'now')}"
        )
    return folder
