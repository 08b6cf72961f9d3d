"""Large jobs: every chunk of images goes to disk as it is made, and a killed job goes on there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import distributed

from ..checkpoints.checksums import fingerprint
from ..checkpoints.files import remove_leftovers, write_atomic
from ..checkpoints.locks import agreed, locked
from ..differences import differences
from ..progress import progress_bar
from ..reading import shown
from .arguments import check_indices, image_seed, integer
from .sampler import Sampler
from .sinks import RECORD, Sink, read_record


def balanced_labels(count: int, num_classes: int, *, shuffled_by: int | None = None) -> list[int]:
    """Return `count` labels that go round the classes, in an order a seed fixes if one is given."""
    labels = np.arange(count) % num_classes
    if shuffled_by is not None:
        labels = np.random.default_rng(shuffled_by % (1 << 64)).permutation(labels)
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

    A job may be extended: the labels of the earlier run, and more. Damaged images are drawn anew.
    It goes on with the same weights and configurations alone, wherever their files are.

    Every process of a torch.distributed group takes its share of the chunks, and the first one
    finishes the sink. The images are those of `sampler(labels, seed=, start_index=)`.

    Args:
        labels: a class for each image. seed, start_index: as of `Sampler`.
        settings: whatever else the images depend on, as JSON; a sink that holds a job with others
            is refused.
        progress: show a bar with images a second.

    Raises:
        ValueError: labels, seed or start_index out of range, or the sink holds another job's
            images; nothing is deleted. BlockingIOError: another process writes there.
        FileNotFoundError: images were removed while the job ran.
    """
    rank, world = 0, 1
    if distributed.is_available() and distributed.is_initialized():
        rank, world = distributed.get_rank(), distributed.get_world_size()
    # Before the record is there, which would refuse the job once its arguments are right.
    labels = sampler.check_labels(list(labels)).tolist()
    seed, start_index = image_seed(seed), integer(start_index, "start_index")
    check_indices(None, start_index, len(labels))
    record = {"labels": labels, "seed": seed, "start_index": start_index, **(settings or {})}
    record = json.loads(json.dumps(record))  # as it is read again
    with locked(sink.output):
        size = agreed(
            lambda: _open(sink, {**record, "weights": _weights(sampler)}, sampler.batch_size)
        )
        if size is None:
            return
        starts = range(0, len(labels), size)
        chunks = [range(first, min(first + size, len(labels))) for first in starts][rank::world]
        with progress_bar(sum(map(len, chunks)), show=progress and rank == 0) as bar:
            for chunk in chunks:
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
        agreed(lambda: sink.finish(labels))


def _weights(sampler: Sampler) -> str:
    """What tells the networks that the images are drawn with."""
    teacher = sampler.teacher if sampler.teacher_steps > 1 or sampler.jacobi else None
    networks = (sampler.generator, sampler.tokenizer, teacher)
    return fingerprint(*(network for network in networks if network is not None))


def _open(sink: Sink, record: dict[str, Any], batch_size: int) -> int | None:
    """Write the job's record, or check it against the one there; return the chunk size, or None
    where the job is finished."""
    folder, result = sink.folder, sink.finished()
    if result is not None:
        _check_same(sink, record, result)
        whole = sink.is_whole(result)
        if whole and result == record:
            return None
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder)
    if (folder / RECORD).is_file():
        found = read_record(folder)
        size = found.pop("chunk")
        _check_same(sink, record, found)
    elif next(folder.glob(sink.parts), None) is not None:
        raise ValueError(f"out: {folder} holds images of no known job; give another place")
    else:
        size = batch_size
    write_atomic(folder / RECORD, json.dumps({**record, "chunk": size}).encode())
    if result is not None and whole:
        sink.reopen(size)
    return size


def _check_same(sink: Sink, record: dict[str, Any], found: dict[str, Any]) -> None:
    """ValueError that names the differences unless the job is the one found, or extends it."""
    count = len(found["labels"])
    part = {**record, "labels": record["labels"][:count]}
    if found == part:
        return
    texts = [_difference(key, *values) for key, values in differences(found, record).items()]
    raise ValueError(
        f"out: {sink.output} holds another job, with other {', '.join(texts)}; "
        "give the same settings to go on with it, or another place"
    )


def _difference(key: str, there: Any, now: Any) -> str:
    if key == "labels":
        there, now = (f"of {len(labels)} images" for labels in (there, now))
        if there == now:
            return f"labels ({now})"
    return f"{shown(key)} (there {shown(there)}, now {now})"
