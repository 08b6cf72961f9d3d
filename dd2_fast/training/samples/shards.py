"""A teacher's samples on disk: shards that map into memory, and their readers.

A folder holds ``manifest.json`` and ``shard-00000.safetensors``, ...: for the k-th, ``tokens`` and
``labels`` (or the tensors of another condition) of the M images from ``k M`` on. Tokens ``[M, n]``
are int16 where the vocabulary allows it, else int32; labels ``[M]`` are int32.
:func:`.make_shards.make_shards` writes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ...checkpoints.checksums import sha256_of_weights
from ...condition import ClassCondition, Condition, Rows, condition_of
from ...differences import described, differences
from ...reading import shown
from .draws import pair_noise

MANIFEST = "manifest.json"
FORMAT = 1
_AGAIN = "run the same dd2-fast make-data again"
_CHUNK = 1 << 22
_NOISE_SHOWN, _NOISE_TOLERANCE = 4, 1e-3


@dataclass(frozen=True)
class ShardEntry:
    """A finished shard as the manifest lists it."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What the shards are.

    Attributes:
        settings: everything the samples depend on.
        made_by: versions, the teacher's file name and the like, which they do not depend on.
        shards: in order; None while the job is unfinished.
        noise_start: of pairs, the first numbers of the noise of image 0.
    """

    settings: dict[str, Any]
    made_by: dict[str, Any]
    shards: list[ShardEntry] | None = None
    noise_start: list[float] | None = None

    def to_json(self) -> bytes:
        """The file's text."""
        shards = None if self.shards is None else [vars(entry) for entry in self.shards]
        return json.dumps(
            {"format": FORMAT, **vars(self), "shards": shards}, indent=1, sort_keys=True
        ).encode()


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:05d}.safetensors"


def shard_ranges(num: int, shard_size: int) -> list[range]:
    """The image indices of every shard."""
    return [range(i, min(i + shard_size, num)) for i in range(0, num, shard_size)]


def shard_count(settings: Mapping[str, Any]) -> int:
    """How many shards hold all images."""
    count: int = -(-settings["num"] // settings["shard_size"])
    return count


def token_dtype(vocabulary: int) -> torch.dtype:
    """int16 where every token fits, else int32."""
    return torch.int16 if vocabulary <= 1 << 15 else torch.int32


def read_manifest(folder: Path) -> Manifest:
    """The manifest of ``folder``.

    Raises:
        FileNotFoundError: there is none. ValueError: it is damaged or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: expected a folder that dd2-fast make-data wrote, found no {MANIFEST}"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.pop("format")
        if found != FORMAT:
            raise ValueError(f"format {FORMAT} is read here, this is {found}")
        shards = values.pop("shards")
        entries = None if shards is None else [ShardEntry(**entry) for entry in shards]
        manifest = Manifest(**values, shards=entries)
        _check_manifest(manifest)
        return manifest
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: expected a manifest of shards: {shown(str(error))}") from error


def _check_manifest(manifest: Manifest) -> None:
    """What readers compute with is of its type, and the shards listed are those of the sizes."""
    settings = manifest.settings
    names = ["num", "shard_size", "num_tokens", "vocabulary", "dimension"]
    if "num_classes" in settings:  # not of conditions that are no classes
        names.append("num_classes")
    for name in names:
        if type(settings[name]) is not int or settings[name] < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {settings[name]!r}")
    for name in ("cfg", "top_k", "top_p", "seed"):
        if type(settings[name]) not in (int, float):
            raise ValueError(f"{name}: expected a number, got {settings[name]!r}")
    start = manifest.noise_start
    pairs = {"samples": False, "pairs": True}[settings["kind"]]
    if pairs and not (
        isinstance(start, list)
        and all(type(value) is float for value in start)
        and type(settings["ode_steps"]) is int
    ):
        raise ValueError(f"expected pairs with ode_steps and noise_start, got {start!r}")
    count = shard_count(settings)
    if manifest.shards is not None:
        if len(manifest.shards) != count:
            raise ValueError(f"expected {count} shards, got {len(manifest.shards)}")
        for number, entry in enumerate(manifest.shards):
            if entry.file != shard_name(number):
                raise ValueError(f"expected {shard_name(number)}, got {entry.file!r}")


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class ShardedSamples:
    """A teacher's samples in shards, of either kind; only the rows that are asked for are read.

    Args:
        folder: what dd2-fast make-data wrote.
        verify: compare every shard with its checksum first, which reads all of them; else each
            is compared when it is first used.
        device: where batches go; None: the CPU.

    Raises:
        FileNotFoundError: no manifest, or a shard is missing.
        ValueError: the job is unfinished, or a shard or the manifest is damaged (by name).
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        verify: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        self.folder, self.device = Path(folder), device
        self.manifest = read_manifest(self.folder)
        settings = self.settings = self.manifest.settings
        self._check_files(verify)
        self._ranges = shard_ranges(settings["num"], settings["shard_size"])
        self._opened: dict[int, dict[str, Tensor]] = {}
        # Of conditions that are no classes all that is asked here is what the tensors are.
        classes = settings.get("num_classes")
        self.condition = Condition() if classes is None else ClassCondition(classes)

    def __len__(self) -> int:
        return int(self.settings["num"])

    def draw(self, size: int, rng: torch.Generator) -> Tensor:
        """int64 ``[size]``, which images make a random batch."""
        return torch.randint(len(self), (size,), generator=rng)

    def take(self, chosen: Tensor) -> tuple[Tensor, Rows]:
        """int64 ``tokens [m, n]`` and conditions (``labels [m]``) of chosen images."""
        tokens, labels = self.read(chosen)
        return tokens.to(self.device), self.condition.to(labels, self.device)

    def read(self, indices: Tensor) -> tuple[Tensor, Rows]:
        """int64 ``tokens [B, n]`` and conditions (int64 ``labels [B]``), on the CPU, of images
        ``indices`` (int64)."""
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(
                f"indices: expected values in 0..{len(self) - 1}, "
                f"got {int(indices.min())} to {int(indices.max())}"
            )
        # Of none: the first shard tells what there is.
        known = self._shard(0) if not indices.numel() else {}
        found = {k: _read(v[:0]) for k, v in known.items()}
        numbers = indices // self.settings["shard_size"]
        for number in numbers.unique().tolist():
            here = (numbers == number).nonzero()[:, 0]
            rows = indices[here] - self._ranges[number].start
            for name, stored in self._shard(number).items():
                values = _read(stored[rows])
                if name == "tokens":
                    self._check_values(number, "token", values, self.settings["vocabulary"])
                elif isinstance(self.condition, ClassCondition):
                    self._check_values(number, "label", values, self.settings["num_classes"])
                if name not in found:
                    found[name] = values.new_empty(len(indices), *values.shape[1:])
                found[name][here] = values
        return found.pop("tokens"), self.condition.of_tensors(found)

    def check_teacher(self, teacher: Any, *, weights: bool = False) -> None:
        """Raise a ValueError unless the samples fit a teacher: n, V, C and the classes.

        With ``weights`` they must be this very teacher's, in the dtype in which it was loaded then.
        """
        got: dict[str, Any] = {**teacher_sizes(teacher)}
        if weights:
            got["teacher_sha256"] = sha256_of_weights(teacher)
        different = differences({name: self.settings.get(name) for name in got}, got)
        if different:
            raise ValueError(
                f"{self.folder}: expected samples that fit the teacher; different: "
                f"{described(different, 'the samples', 'the teacher')}"
            )

    def _check_files(self, verify: bool) -> None:
        entries = self.manifest.shards
        if entries is None:
            there = sum(1 for _ in self.folder.glob("shard-*.safetensors"))
            raise ValueError(
                f"{self.folder}: expected a finished set of {shard_count(self.settings)} shards, "
                f"got an unfinished job with {there}; {_AGAIN} to finish it"
            )
        for entry in entries:
            path = self.folder / entry.file
            if not path.is_file():
                raise FileNotFoundError(f"{path}: the shard is missing; {_AGAIN} to make it")
            if path.stat().st_size != entry.bytes:
                raise self._damaged(path, f"of {entry.bytes} bytes, got {path.stat().st_size}")
            if verify:
                self._check_sum(entry)

    def _check_sum(self, entry: ShardEntry) -> None:
        path = self.folder / entry.file
        if (found := sha256_of_file(path)) != entry.sha256:
            raise self._damaged(path, f"with SHA-256 {entry.sha256}, got {found}")

    def _shard(self, number: int) -> dict[str, Tensor]:
        """``tokens`` and the conditions' tensors as stored, which are pages of the file."""
        if number not in self._opened:
            path, count = self.folder / shard_name(number), len(self._ranges[number])
            if self.manifest.shards is not None:
                self._check_sum(self.manifest.shards[number])
            try:
                with safetensors.safe_open(path, framework="pt") as file:
                    start, every = self.condition.name, list(file.keys())
                    names = [name for name in every if name.startswith(start)] or [start]
                    stored = {name: file.get_tensor(name) for name in ("tokens", *names)}
            except safetensors.SafetensorError as error:
                raise self._damaged(path, f"that can be opened: {error}") from error
            tokens = stored["tokens"]
            whole = all(len(tensor) == count for tensor in stored.values())
            if list(tokens.shape) != [count, self.settings["num_tokens"]] or not whole:
                raise self._damaged(
                    path,
                    f"of {[count, self.settings['num_tokens']]} tokens, got {list(tokens.shape)}",
                )
            self._opened[number] = stored
        return self._opened[number]

    def _check_values(self, number: int, what: str, values: Tensor, stop: int) -> None:
        # Out of range a code would be another memory's, or end the CUDA context.
        low, high = (int(v) for v in values.aminmax())
        if low < 0 or high >= stop:
            path = self.folder / shard_name(number)
            got = low if low < 0 else high
            raise self._damaged(path, f"with {what}s in 0..{stop - 1}, got {got}")

    @staticmethod
    def _damaged(path: Path, expected: str) -> ValueError:
        return ValueError(f"{path}: expected a shard {expected}; {_AGAIN} to make it anew")


class ShardedPairs:
    """DD1's pairs in shards: their noise is no data, but a function of (seed, index).

    Arguments and errors are those of :class:`ShardedSamples`; ValueError also for samples that
    have no noise, and where this version's noise is not that of the version that made the pairs.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        verify: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        self.samples = ShardedSamples(folder, verify=verify, device=device)
        settings = self.settings = self.samples.settings
        if settings["kind"] != "pairs":
            raise ValueError(
                f"{folder}: expected pairs, got {settings['kind']} without noise; "
                "make them by dd2-fast make-data --pairs"
            )
        found, stored = noise_start(settings), self.samples.manifest.noise_start
        if not _close(found, stored):
            raise ValueError(
                f"{folder}: expected pairs whose noise is this version's, which starts with "
                f"{found}, got {stored}; make them anew"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def draw(self, size: int, rng: torch.Generator) -> Tensor:
        """int64 ``[size]``, which pairs make a random batch."""
        return self.samples.draw(size, rng)

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor, Rows]:
        """``noise [m, n, C]`` (float32), int64 ``tokens`` and conditions of chosen pairs."""
        tokens, labels = self.samples.take(chosen)
        return noise_of(self.settings, chosen.to(self.samples.device)), tokens, labels

    def check_teacher(self, teacher: Any, *, weights: bool = False) -> None:
        """As :meth:`ShardedSamples.check_teacher`."""
        self.samples.check_teacher(teacher, weights=weights)


def noise_of(settings: Mapping[str, Any], indices: Tensor) -> Tensor:
    """The noise ``[B, n, C]`` of pairs made with ``settings``."""
    return pair_noise(settings["seed"], indices, settings["num_tokens"], settings["dimension"])


def noise_start(settings: Mapping[str, Any]) -> list[float]:
    """The first numbers of image 0's noise, which tell whether two versions make the same."""
    return noise_of(settings, torch.zeros(1, dtype=torch.int64)).flatten()[:_NOISE_SHOWN].tolist()


def teacher_sizes(teacher: Any) -> dict[str, int]:
    """The sizes that samples and their teacher must agree in.

    Raises:
        ValueError: the teacher needs a tokenizer for its codebook, and has none.
    """
    try:
        vocabulary, dimension = teacher.codebook.shape
    except RuntimeError as error:  # VAR's
        raise ValueError(str(error)) from error
    return {
        "num_tokens": teacher.num_tokens,
        "vocabulary": vocabulary,
        "dimension": dimension,
        **condition_of(teacher).settings,
    }


def _read(stored: Tensor) -> Tensor:
    """Numbers of codes and classes as int64, other tensors as they are."""
    return stored.long() if stored.dtype in (torch.int16, torch.int32) else stored


def _close(found: list[float], stored: list[float] | None) -> bool:
    return (
        stored is not None
        and len(stored) == len(found)
        and all(abs(a - b) < _NOISE_TOLERANCE for a, b in zip(found, stored, strict=True))
    )
