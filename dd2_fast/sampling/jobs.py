"""Large jobs: every chunk of images goes to disk as it is made, and a killed job goes on there."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import distributed
from tqdm import tqdm

from ..checkpoints.files import check_writable, write_atomic
from .arguments import check_indices, image_seed, integer
from .sampler import Sampler

_RECORD = ".job.json"


class Sink(Protocol):
    """Where the images of a job go, chunk by chunk."""

    folder: Path  # of the record, and of what is unfinished

    def has(self, indices: range, labels: Sequence[int]) -> bool:
        """Whether these images are all there."""

    def write(self, indices: range, labels: Sequence[int], images: np.ndarray) -> None:
        """Store images uint8 [B, H, W, 3]; each file appears whole or not at all."""

    def finish(self, labels: Sequence[int]) -> None:
        """Make the result of the parts, when all are there, and remove what is not to stay."""


class PngFolder:
    """One PNG an image, `<index>_<label>.png`, each pixel enlarged `scale` times.

    The job's record stays with them, so that no other job's images get among them.
    """

    def __init__(self, folder: Path, scale: int = 1) -> None:
        check_writable(folder)
        self.folder, self.scale = folder, scale

    def _path(self, index: int, label: int) -> Path:
        return self.folder / f"{index:06d}_{label}.png"

    def has(self, indices: range, labels: Sequence[int]) -> bool:
        return all(self._path(i, y).is_file() for i, y in zip(indices, labels, strict=True))

    def write(self, indices: range, labels: Sequence[int], images: np.ndarray) -> None:
        from PIL import Image

        enlarged = images.repeat(self.scale, axis=1).repeat(self.scale, axis=2)
        for index, label, image in zip(indices, labels, enlarged, strict=True):
            data = io.BytesIO()
            Image.fromarray(image).save(data, "PNG")
            write_atomic(self._path(index, label), data.getvalue())

    def finish(self, labels: Sequence[int]) -> None:
        for left_by_a_kill in self.folder.glob(".*.tmp"):
            left_by_a_kill.unlink()


class NpzFile:
    """The archive that ADM's evaluation reads: `arr_0` uint8 [N, H, W, 3] and the labels `arr_1`.

    Until the job is done its parts lie in the folder `<name>.parts` beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.with_name(path.name + ".parts")
        check_writable(path.absolute().parent)
        check_writable(self.folder)

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:09d}.npy"

    def has(self, indices: range, labels: Sequence[int]) -> bool:
        path = self._path(indices.start)
        return path.is_file() and len(np.load(path, mmap_mode="r")) == len(indices)

    def write(self, indices: range, labels: Sequence[int], images: np.ndarray) -> None:
        data = io.BytesIO()
        np.save(data, images)
        write_atomic(self._path(indices.start), data.getvalue())

    def finish(self, labels: Sequence[int]) -> None:
        parts = sorted(self.folder.glob("*.npy"))
        shape = (len(labels), *np.load(parts[0], mmap_mode="r").shape[1:])
        temporary = self.folder / "whole.npz"
        with zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for part in parts:
                    file.write(np.load(part).tobytes())
            with archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, np.asarray(labels, dtype=np.int64))
        temporary.replace(self.path)
        for used in sorted(self.folder.iterdir(), key=lambda path: path.name == _RECORD):
            used.unlink()  # the record last, so that a kill here leaves a job that goes on
        self.folder.rmdir()


def balanced_labels(count: int, num_classes: int, *, shuffled_by: int | None = None) -> list[int]:
    """Return `count` labels that go round the classes, in an order a seed fixes if one is given."""
    labels = np.arange(count) % num_classes
    if shuffled_by is not None:
        labels = np.random.default_rng(shuffled_by).permutation(labels)
    return labels.tolist()


def run_job(
    sampler: Sampler,
    labels: Sequence[int],
    sink: Sink,
    *,
    seed: int = 0,
    start_index: int = 0,
    settings: dict[str, Any] | None = None,
    progress: bool = False,
) -> None:
    """Draw one image a label into the sink; what is there from an earlier run is not drawn again.

    A job may be extended: the labels of the earlier run, and more.

    Every process of a torch.distributed group takes its share of the chunks, and the first one
    finishes the sink. The images are those of `sampler(labels, seed=, start_index=)`.

    Args:
        labels: a class for each image. seed, start_index: as of `Sampler`.
        settings: whatever else the images depend on, as JSON; a sink that holds a job with others
            is refused.
        progress: show a bar with images a second.

    Raises:
        ValueError: labels, seed or start_index out of range, or the sink holds another job's
            images; nothing is deleted.
    """
    rank, world = 0, 1
    if distributed.is_available() and distributed.is_initialized():
        rank, world = distributed.get_rank(), distributed.get_world_size()
    # Before the record is there, which would refuse the job once its arguments are right.
    labels = sampler.check_labels(list(labels)).tolist()
    seed, start_index = image_seed(seed), integer(start_index, "start_index")
    check_indices(None, start_index, len(labels))
    size = _open(sink, labels, seed, start_index, sampler.batch_size, settings or {}, rank, world)
    chunks = [range(first, min(first + size, len(labels))) for first in range(0, len(labels), size)]
    with tqdm(
        total=sum(map(len, chunks[rank::world])), unit="image", disable=not progress or rank > 0
    ) as bar:
        for chunk in chunks[rank::world]:
            part = labels[chunk.start : chunk.stop]
            indices = range(start_index + chunk.start, start_index + chunk.stop)
            if sink.has(indices, part):
                bar.total -= len(chunk)
                bar.refresh()
                continue
            images = sampler(part, seed=seed, start_index=indices.start, output="np")
            sink.write(indices, part, images)
            bar.update(len(chunk))
    if world > 1:
        distributed.barrier()
    if rank == 0:
        sink.finish(labels)
    if world > 1:
        distributed.barrier()


def _open(
    sink: Sink,
    labels: list[int],
    seed: int,
    start_index: int,
    batch_size: int,
    settings: dict[str, Any],
    rank: int,
    world: int,
) -> int:
    """Write the job's record, or check it against the one there; return the chunk size."""
    path = sink.folder / _RECORD
    record = {"labels": labels, "seed": seed, "start_index": start_index, **settings}
    if not path.is_file() and next(sink.folder.glob("*.png"), None) is not None:
        raise ValueError(f"out: {sink.folder} holds images of no known job; give another place")
    if rank == 0:
        found = _read(path) if path.is_file() else {**record, "chunk": batch_size}
        size = found.pop("chunk")
        if found == record or _extends(record, found):
            write_atomic(path, json.dumps({**record, "chunk": size}).encode())
    if world > 1:
        distributed.barrier()
    found = _read(path)
    size = found.pop("chunk")
    differing = [key for key in {**record, **found} if record.get(key) != found.get(key)]
    if differing:
        raise ValueError(
            f"out: {sink.folder} holds another job, with other "
            f"{', '.join(_difference(key, found, record) for key in sorted(differing))}; "
            "give the same settings to go on with it, or another place"
        )
    return size


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _extends(record: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether a job is the one found with more labels after its own."""
    count = len(found["labels"])
    return len(record["labels"]) > count and found == {
        **record,
        "labels": record["labels"][:count],
    }


def _difference(key: str, found: dict[str, Any], record: dict[str, Any]) -> str:
    there, now = found.get(key), record.get(key)
    if key == "labels":
        there, now = (f"of {len(job[key])} images" for job in (found, record))
    return f"{key} (there {there}, now {now})"
