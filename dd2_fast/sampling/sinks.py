"""Where the images of a job go: a folder of PNG files, or ADM's archive."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from ..checkpoints.arrays import ArchivedArray
from ..checkpoints.files import (
    check_file,
    check_writable,
    remove_leftovers,
    replacing,
    write_atomic,
)
from ..checkpoints.locks import short_name

RECORD = ".job.json"
_DIGEST = hashlib.sha256().digest_size
_LONGEST = (1 << 16) - 1  # bytes of an archive's comment
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip file's first; the same job makes the same bytes
_NAME = "dd2_fast"  # of the text in a PNG
_GO_ON = "the same command goes on"


class Sink(Protocol):
    """Where the images of a job go, chunk by chunk."""

    output: Path  # what the job makes, a folder or a file
    folder: Path  # of the record, and of what is unfinished
    parts: str  # pattern of the files with images in it

    def finished(self) -> dict[str, Any] | None:
        """The record of the job whose result is there; None where the folder's record tells."""

    def is_whole(self, record: dict[str, Any]) -> bool:
        """Whether that result is undamaged; removes what a killed job left beside it."""

    def reopen(self, chunk: int) -> None:
        """Make the parts, in chunks, of a finished result, so that more may be added."""

    def has(self, indices: range, labels: Sequence[int]) -> bool:
        """Whether these images are all there, undamaged."""

    def write(self, indices: range, labels: Sequence[int], images: np.ndarray) -> None:
        """Store images uint8 [B, H, W, c]; each file appears whole or not at all."""

    def finish(self, labels: Sequence[int]) -> None:
        """Make the result of the parts, and remove what is not to stay.

        Raises:
            FileNotFoundError: some are not there.
        """


class PngFolder:
    """One PNG an image, `<index>_<label>.png`, each pixel enlarged `scale` times.

    Its name is a text inside, too. The job's record stays with them, so that no other job's images
    get among them.
    """

    parts = "*.png"

    def __init__(self, folder: Path, scale: int = 1) -> None:
        check_writable(folder)
        self.output = self.folder = folder
        self.scale = scale

    def _path(self, index: int, label: int) -> Path:
        return self.folder / f"{index:06d}_{label}.png"

    def finished(self) -> dict[str, Any] | None:
        return None

    def is_whole(self, record: dict[str, Any]) -> bool:
        return False

    def reopen(self, chunk: int) -> None:
        pass

    def has(self, indices: range, labels: Sequence[int]) -> bool:
        return all(_is_png(self._path(i, y)) for i, y in zip(indices, labels, strict=True))

    def write(self, indices: range, labels: Sequence[int], images: np.ndarray) -> None:
        enlarged = images.repeat(self.scale, axis=1).repeat(self.scale, axis=2)
        for index, label, image in zip(indices, labels, enlarged, strict=True):
            path = self._path(index, label)
            write_atomic(path, png(image, path.stem))

    def finish(self, labels: Sequence[int]) -> None:
        there = set(os.listdir(self.folder))
        start = read_record(self.folder)["start_index"]
        names = [self._path(start + i, y).name for i, y in enumerate(labels)]
        lost = [name for name in names if name not in there]
        if lost:
            raise FileNotFoundError(
                f"{self.folder}: expected {len(names)} images, {len(lost)} are gone, {lost[0]} "
                f"first; {_GO_ON}"
            )


class NpzFile:
    """The archive that ADM's evaluation reads: `arr_0` uint8 [N, H, W, 3] and the labels `arr_1`.

    Until the job is done its parts, each with the SHA-256 of it and its name at its end, lie in the
    folder `<name>.parts` beside it. The archive's comment is the job's record without its labels.
    """

    parts = "*.npy"

    def __init__(self, path: Path) -> None:
        self.output, self.path = path, Path(os.path.realpath(path))
        self.folder = self.path.with_name(short_name(self.path) + ".parts")
        check_file(path)
        if self.folder.exists():
            check_writable(self.folder)

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:09d}.npy"

    def finished(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        expected = f"{self.output}: expected no file there, or an archive of this job"
        try:
            labels = ArchivedArray(self.path, "arr_1")
            record = {**json.loads(labels.comment), "labels": labels.read(0, len(labels)).tolist()}
            if type(record.get("start_index")) is not int:
                raise ValueError("expected a record with a start_index")
            return record
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{expected}, got another file, or a damaged one; give another place, or delete it"
            ) from error

    def is_whole(self, record: dict[str, Any]) -> bool:
        try:
            for name in ("arr_0", "arr_1"):
                ArchivedArray(self.path, name).check()
        except ValueError:
            return False
        with suppress(OSError, ValueError):
            left = read_record(self.folder)
            del left["chunk"]
            if left == record:
                self._remove_parts()
        return True

    def reopen(self, chunk: int) -> None:
        images = ArchivedArray(self.path)
        start = read_record(self.folder)["start_index"]
        for first in range(0, len(images), chunk):
            self._write(start + first, images.read(first, min(first + chunk, len(images))))

    def has(self, indices: range, labels: Sequence[int]) -> bool:
        images = self._read(indices.start)
        return images is not None and len(images) == len(indices)

    def write(self, indices: range, labels: Sequence[int], images: np.ndarray) -> None:
        self._write(indices.start, images)

    def _write(self, first: int, images: np.ndarray) -> None:
        data = io.BytesIO()
        np.save(data, images)
        whole = data.getvalue()
        write_atomic(self._path(first), whole + _digest(self._path(first), whole))

    def _read(self, first: int) -> np.ndarray | None:
        """The images of a part; None where it is missing or damaged."""
        try:
            data = self._path(first).read_bytes()
        except FileNotFoundError:
            return None
        whole, digest = data[:-_DIGEST], data[-_DIGEST:]
        if _digest(self._path(first), whole) != digest:
            return None
        return np.load(io.BytesIO(whole))

    def finish(self, labels: Sequence[int]) -> None:
        if not labels:
            raise ValueError("labels: expected at least 1 for an archive, got none")
        record = read_record(self.folder)
        chunk, start = record.pop("chunk"), record["start_index"]
        del record["labels"]
        comment = json.dumps(record, sort_keys=True).encode()
        if len(comment) > _LONGEST:
            raise ValueError(f"settings: expected at most {_LONGEST} bytes, got {len(comment)}")
        with replacing(self.path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            shape: tuple[int, ...] | None = None
            with archive.open(
                zipfile.ZipInfo("arr_0.npy", _EPOCH), "w", force_zip64=True
            ) as member:
                for first in range(0, len(labels), chunk):
                    images = self._part(start + first, min(chunk, len(labels) - first), shape)
                    if shape is None:
                        shape = images.shape[1:]
                        _write_header(member, (len(labels), *shape))
                    member.write(images.tobytes())
            with archive.open(zipfile.ZipInfo("arr_1.npy", _EPOCH), "w") as member:
                np.lib.format.write_array(member, np.asarray(labels, dtype=np.int64))
            archive.comment = comment
        self._remove_parts()

    def _part(self, first: int, count: int, shape: tuple[int, ...] | None) -> np.ndarray:
        images = self._read(first)
        path = self._path(first)
        if images is None or len(images) != count:
            raise FileNotFoundError(f"{path}: expected {count} images, they are gone; {_GO_ON}")
        if images.dtype != np.uint8 or images.shape[1:] != (shape or images.shape[1:]):
            raise ValueError(
                f"{path}: expected uint8 images {shape}, got {images.dtype} {images.shape[1:]}; "
                "the model has changed, so give another place"
            )
        return images

    def _remove_parts(self) -> None:
        remove_leftovers(self.folder)
        with suppress(OSError):  # what else somebody put there stays
            for part in self.folder.glob(self.parts):
                part.unlink()
            (self.folder / RECORD).unlink()
            self.folder.rmdir()


def _digest(path: Path, data: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + data).digest()


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def png(image: np.ndarray, name: str) -> bytes:
    """The PNG file of an image uint8 [H, W, 3], or of a grey one [H, W, 1], with its name as a text
    inside."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    data, about = io.BytesIO(), PngInfo()
    about.add_text(_NAME, name)
    grey = image.shape[-1] == 1
    Image.fromarray(image[..., 0] if grey else image).save(data, "PNG", pnginfo=about)
    return data.getvalue()


def read_record(folder: Path) -> dict[str, Any]:
    """The record of the job in a folder.

    Raises:
        FileNotFoundError: there is none. ValueError: it is damaged.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        whole = (
            all(type(label) is int for label in record["labels"])
            and all(type(record[name]) is int for name in ("seed", "start_index", "chunk"))
            and record["chunk"] > 0
        )
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected the record of the job, it is gone") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(
            f"{path}: expected the record of a job, got a damaged one; give another place, or "
            "delete the folder and draw its images anew"
        )
    return record


def _is_png(path: Path) -> bool:
    """Whether a whole PNG of that name is there, by the checksums of its parts.

    Those of earlier versions do not have their names inside.
    """
    from PIL.PngImagePlugin import PngImageFile  # Image.open refuses what --scale makes large

    try:
        with PngImageFile(path) as image:
            image.verify()
            return image.info.get(_NAME, path.stem) == path.stem
    except (OSError, SyntaxError, ValueError, IndexError):
        return False
