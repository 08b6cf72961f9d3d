"""Writes a teacher's samples as shards; a killed job goes on, several processes share it."""

from __future__ import annotations

import errno
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, distributed

from ...checkpoints.files import check_writable, write_atomic
from ...checkpoints.locks import agreed, locked
from ...condition import RULES, Rows, condition_of
from ...differences import described, differences
from ...losses import TeacherScore, flow_pairs
from ...losses.target import check_teacher
from ...models.sampling import check_seed
from ...ops.teacher_checks import check_filters
from ...progress import progress_bar
from ..provenance import provenance
from .draws import cfg_of, draw_tokens
from .shards import (
    MANIFEST,
    Manifest,
    ShardEntry,
    noise_of,
    noise_start,
    read_manifest,
    sha256_of_file,
    sha256_of_weights,
    shard_name,
    shard_ranges,
    teacher_sizes,
    token_dtype,
)

_SUM = ".sha256"
_MOST_SHARDS = 1_000_000
_LATER = ("teacher_config", "tokenizer_config")


def make_shards(
    score: TeacherScore,
    folder: str | Path,
    *,
    num: int,
    seed: int = 0,
    ode_steps: int | None = None,
    labels: str = "balanced",
    batch_size: int = 64,
    shard_size: int = 4096,
    made_by: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> int:
    """Write ``num`` samples of a teacher to ``folder``; return how many this process drew.

    Each image is a function of (seed, index, label), and its label one of (seed, index): a job
    that was killed, split into other batches or shared by a torch.distributed group writes the
    same samples. A shard appears whole, with its checksum; the folder's shards are checked first,
    and those that are missing or damaged are made.

    Args:
        score: the teacher and its sampling settings.
        ode_steps: None for samples; else the tokens are those to which DD1's flow carries each
            image's noise (:func:`dd2_fast.losses.flow_pairs`) in this many Heun steps. The noise
            is not stored.
        labels: ``"balanced"`` goes round the classes, ``"uniform"`` draws them; other conditions
            likewise.
        batch_size: images a pass of the teacher. shard_size: images a file.
        made_by: anything JSON to keep in the manifest besides versions and settings.
        progress: show a bar with images a second.

    Raises:
        ValueError: a bad argument, logits that are not finite, or the folder holds samples made
            with other settings (each is named).
        OSError: the folder cannot be written, or shards were removed meanwhile; what is finished
            stays. BlockingIOError: another process writes there.
    """
    for name, value in (
        ("num", num),
        ("batch_size", batch_size),
        ("shard_size", shard_size),
        ("ode_steps", 1 if ode_steps is None else ode_steps),
    ):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if num > _MOST_SHARDS * shard_size:
        raise ValueError(
            f"shard_size: expected at least {-(-num // _MOST_SHARDS)}, which makes {_MOST_SHARDS} "
            f"shards of {num} images, got {shard_size}"
        )
    check_seed(seed)
    check_filters(score.top_k, score.top_p)
    check_teacher(score.teacher, ("generate",))
    if not math.isfinite(cfg_of(score)):
        raise ValueError(f"cfg: expected a finite number, got {score.cfg}")
    if labels not in RULES:
        raise ValueError(f"labels: expected one of {', '.join(RULES)}, got {labels!r}")
    folder = Path(folder)
    rank, world = 0, 1
    if distributed.is_available() and distributed.is_initialized():
        rank, world = distributed.get_rank(), distributed.get_world_size()
    rules = {"num": num, "seed": seed, "labels": labels, "shard_size": shard_size}
    settings = {**rules, **_score_settings(score, ode_steps)}
    check_writable(folder)
    with locked(folder):
        # The first process looks, so that all share evenly what is missing.
        missing = agreed(lambda: _open(folder, settings, dict(made_by or {})))[rank::world]
        drawn = _make(missing, score, folder, settings, batch_size, progress and rank == 0)
        if world > 1:
            distributed.barrier()
        agreed(lambda: _finish(folder))
    return drawn


def _score_settings(score: TeacherScore, ode_steps: int | None) -> dict[str, Any]:
    """What of the teacher and its sampling the samples depend on."""
    teacher: Any = score.teacher
    tokenizer = getattr(teacher, "tokenizer", None)
    return {
        "kind": "samples" if ode_steps is None else "pairs",
        "ode_steps": ode_steps,
        "cfg": cfg_of(score),
        "top_k": score.top_k,
        "top_p": float(score.top_p),
        **teacher_sizes(teacher),
        "teacher": type(teacher).__name__,
        "teacher_sha256": sha256_of_weights(teacher),
        "teacher_config": _config_of(teacher),
        "tokenizer_sha256": None if tokenizer is None else sha256_of_weights(tokenizer),
        "tokenizer_config": _config_of(tokenizer),
    }


def _config_of(model: Any) -> Any:
    """The configuration of a network as a manifest has it, None where it has none."""
    return json.loads(json.dumps(getattr(model, "config", None), default=repr))


def _open(folder: Path, settings: dict[str, Any], made_by: dict[str, Any]) -> list[int]:
    """Write the manifest, or check the settings against the one there; the shards to be made."""
    if not (folder / MANIFEST).is_file():
        if next(folder.glob("shard-*.safetensors"), None) is not None:
            raise ValueError(f"{folder}: holds shards of no known job; give another folder")
        manifest = Manifest(settings, {**made_by, **provenance()})
        if settings["kind"] == "pairs":
            manifest = replace(manifest, noise_start=noise_start(settings))
        _write(folder / MANIFEST, manifest.to_json())
    manifest = read_manifest(folder)
    # Manifests of earlier versions do not have all of them.
    wanted = {k: v for k, v in settings.items() if k in manifest.settings or k not in _LATER}
    different = differences(manifest.settings, wanted)
    if different:
        raise ValueError(
            f"{folder}: expected samples made with the same settings; different: "
            f"{described(different, 'there', 'now')}; give the same settings to go on, or "
            "another folder"
        )
    count = len(shard_ranges(settings["num"], settings["shard_size"]))
    return [k for k in range(count) if not _is_whole(folder, k, manifest)]


def _is_whole(folder: Path, number: int, manifest: Manifest) -> bool:
    """Whether a shard is there with the checksum that was noted before it was written."""
    path = folder / shard_name(number)
    noted = _noted(folder, number)
    if noted is None and manifest.shards is not None:
        noted = manifest.shards[number].sha256
    return path.is_file() and noted == sha256_of_file(path)


def _noted(folder: Path, number: int) -> str | None:
    path = folder / (shard_name(number) + _SUM)
    if not path.is_file():
        return None
    return path.read_text(encoding="utf-8", errors="replace").partition(" ")[0]


def _make(
    numbers: list[int],
    score: TeacherScore,
    folder: Path,
    settings: dict[str, Any],
    batch_size: int,
    progress: bool,
) -> int:
    """Draw and write these shards; return how many images that was."""
    ranges = shard_ranges(settings["num"], settings["shard_size"])
    total = sum(len(ranges[number]) for number in numbers)
    condition = condition_of(score.teacher)
    with progress_bar(total, show=progress) as bar:
        for number in numbers:
            first, stop = ranges[number].start, ranges[number].stop
            drawn = []
            for start in range(first, stop, batch_size):
                indices = torch.arange(start, min(start + batch_size, stop))
                drawn.append(_draw(score, settings, indices))
                bar.update(len(indices))
            tokens, labels = zip(*drawn, strict=True)
            whole = condition.tensors(condition.cat(labels))
            _write_shard(folder, number, torch.cat(tokens), whole, settings)
    return total


@torch.no_grad()
def _draw(score: TeacherScore, settings: dict[str, Any], indices: Tensor) -> tuple[Tensor, Rows]:
    """Tokens and conditions of images, on the CPU."""
    seed, codebook = settings["seed"], score.teacher.codebook
    indices = indices.to(codebook.device)
    condition = condition_of(score.teacher)
    labels = condition.draw(settings["labels"], seed, indices)
    if settings["kind"] == "pairs":
        noise = noise_of(settings, indices).to(codebook)
        tokens = flow_pairs(noise, labels, score, settings["ode_steps"])
    else:
        tokens = draw_tokens(score, labels, indices, seed)
    return tokens.cpu(), condition.to(labels, "cpu")


def _write_shard(
    folder: Path,
    number: int,
    tokens: Tensor,
    conditions: Mapping[str, Tensor],
    settings: dict[str, Any],
) -> None:
    """Write the checksum, then the shard: a kill between leaves a shard that is made anew."""
    name = shard_name(number)
    stored = {k: v.int() if v.dtype == torch.int64 else v for k, v in conditions.items()}
    stored["tokens"] = tokens.to(token_dtype(settings["vocabulary"]))
    about = {"dd2_fast_shard": json.dumps({"number": number, "of": settings["num"]})}
    data = safetensors.torch.save(stored, about)
    _write(folder / (name + _SUM), f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode())
    _write(folder / name, data)


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomic(path, data)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"{error.strerror}; the finished shards stay, and the same command goes on with them",
            str(path),
        ) from error


def _finish(folder: Path) -> None:
    """List the shards in the manifest, then remove what else there is."""
    manifest = read_manifest(folder)
    entries = []
    for number, _ in enumerate(
        shard_ranges(manifest.settings["num"], manifest.settings["shard_size"])
    ):
        noted, path = _noted(folder, number), folder / shard_name(number)
        if noted is None and manifest.shards is not None:
            noted = manifest.shards[number].sha256
        if noted is None or not path.is_file():
            raise FileNotFoundError(
                errno.ENOENT,
                "the shard was removed while the job ran; the same command goes on",
                str(path),
            )
        entries.append(ShardEntry(path.name, path.stat().st_size, noted))
    if entries != manifest.shards:
        _write(folder / MANIFEST, replace(manifest, shards=entries).to_json())
    for used in folder.glob(f"shard-*{_SUM}"):
        used.unlink()
