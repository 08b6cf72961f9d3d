"""Where a run's teacher and its samples come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ... import checkpoints
from ...checkpoints.folder import is_folder_of_weights
from ...differences import described, differences
from ...losses import TeacherScore
from ...models.families import FAMILIES
from ...models.family import Teacher
from ...sampling.sources import bundled_names, bundled_path
from ..samples.draws import LivePairs, LiveSamples, Source, cfg_of
from ..samples.shards import ShardedPairs, ShardedSamples

# Small networks with random weights: every kind of arithmetic that the released ones have, to try
# a recipe or measure it where there is no file.
RANDOM = {f"random-{name}": family.random for name, family in FAMILIES.items()}


def load_teacher(
    source: str, tokenizer: str = "", seed: int = 0, config: Mapping[str, Any] | None = None
) -> Teacher:
    """A frozen float32 teacher with its tokenizer.

    Args:
        source: a checkpoint, a bundle folder or a bundled name (their teacher), or one of
            :data:`RANDOM`.
        tokenizer: the file of its tokenizer, where ``source`` has none. seed: of random weights.
        config: what the file does not tell.

    Raises:
        ValueError: no source; what :func:`dd2_fast.checkpoints.load` raises; not a teacher; a
            teacher without a tokenizer; a tokenizer or settings for what has its own.
    """
    if not source:
        raise ValueError(
            "source.teacher: expected a checkpoint, a bundle or one of "
            f"{', '.join((*bundled_names(), *RANDOM))}, got nothing; give --teacher"
        )
    folder = bundled_path(source) if source in bundled_names() else Path(source)
    whole = source in RANDOM or (folder.is_dir() and not is_folder_of_weights(folder))
    for name, value in (("tokenizer", tokenizer), ("config", config)):
        if whole and value:
            raise ValueError(f"source.{name}: expected nothing, {source} has its own, got {value}")
    if source in RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            teacher: Any = RANDOM[source]()
    elif whole:
        bundle = checkpoints.load_bundle(folder)
        teacher = bundle.teacher
        teacher.tokenizer = bundle.tokenizer
    else:
        try:
            teacher = checkpoints.load(source, tokenizer=tokenizer or None, **(config or {}))
        except TypeError as error:  # a setting of the wrong name or type
            raise ValueError(str(error)) from error
    if not hasattr(teacher, "logits"):
        raise ValueError(
            f"source.teacher: expected a teacher, got a {type(teacher).__name__} in {source}"
        )
    if getattr(teacher, "tokenizer", None) is None:
        raise ValueError(
            f"source.tokenizer: expected the file of its tokenizer for the teacher {source}, got "
            "nothing; give --tokenizer"
        )
    frozen: Teacher = teacher.float().eval().requires_grad_(False)
    return frozen


def open_samples(
    folder: str, score: TeacherScore, *, pairs: bool, ode_steps: int, device: torch.device
) -> Source:
    """What stage 1 and DD1 learn from: shards of ``dd2-fast make-data``, or the teacher itself.

    Args:
        folder: of the shards; empty draws from ``score`` whenever a batch is wanted.
        pairs: whether noise is needed too. ode_steps: of pairs drawn when wanted.
        device: where batches go.

    Raises:
        ValueError: the shards are of another teacher's sizes, or were drawn with other settings
            than ``score`` has (each is named).
    """
    if not folder:
        return LivePairs(score, ode_steps=ode_steps) if pairs else LiveSamples(score)
    samples = (ShardedPairs if pairs else ShardedSamples)(folder, device=device)
    samples.check_teacher(score.teacher)
    _check_drawn_so(folder, samples.settings, score, ode_steps)
    return samples


def _check_drawn_so(
    folder: str, shards: Mapping[str, Any], score: TeacherScore, ode_steps: int
) -> None:
    """Raise a ValueError unless shards were drawn as the configuration says."""
    wanted: dict[str, Any] = {
        "samples.cfg": cfg_of(score),
        "samples.top_k": score.top_k,
        "samples.top_p": score.top_p,
    }
    if shards["ode_steps"] is not None:  # pairs
        wanted["ode_steps"] = ode_steps
    found = {name: shards[name.removeprefix("samples.")] for name in wanted}
    different = differences(found, wanted)
    if different:
        accepting = " ".join(f"--set {name}={value}" for name, (value, _) in different.items())
        raise ValueError(
            f"{folder}: expected samples drawn with the configuration's settings; different: "
            f"{described(different, 'the shards', 'the configuration')}; {accepting} trains on "
            "these, or make others"
        )
