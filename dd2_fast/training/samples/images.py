"""A user's own images: a folder a class, an `.npz` archive, or MNIST's IDX files."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ...checkpoints.arrays import ArchivedArray
from ...checkpoints.files import write_atomic

_PIECE = 1 << 20
_IDX_MAGIC = {1: 0x801, 3: 0x803, 4: 0x804}  # of uint8 with so many axes
_IDX_SETS = ("train", "t10k")
_NAMED = 3  # of each kind of problem in a message
_SURVEY_BATCH = 64


@dataclass(frozen=True)
class Problem:
    """An image that is not as it should be: its name, and the kind (``"broken"``, ``"tiny"`` ...).

    ``reason`` is what was found."""

    name: str
    kind: str
    reason: str


class Images(Protocol):
    """Images of classes, each read when it is asked for.

    Attributes:
        labels: int64 ``[N]``. classes: their names. held_out: bool ``[N]``, where the files say
            what is held out, else None.
    """

    labels: np.ndarray
    classes: list[str]
    held_out: np.ndarray | None

    def __len__(self) -> int: ...

    def read(self, index: int) -> Any:
        """The image of a number: uint8 ``[H, W]`` or ``[H, W, c]``, or a Pillow image."""

    def files_used(self) -> Sequence[Path]:
        """The files that the images are in."""

    def check(self, index: int, smallest: int, largest: int) -> Problem | None:
        """What is wrong with the image of a number, None where it is as it should be.

        Args:
            smallest: pixels of the shorter side. largest: pixels of the whole image.
        """


def open_images(path: str | os.PathLike[str]) -> Images:
    """The images at a path.

    Args:
        path: a folder with one subfolder a class, whose names in order are the classes; an
            ``.npz`` with ``images`` (uint8 ``[N, H, W]`` or ``[N, H, W, c]``) and ``labels``
            (``[N]``); an IDX file of images (``...-images-idx3-ubyte``, gzipped or not), whose
            labels lie beside it, or a folder that holds ``train-`` and, for what is held out,
            ``t10k-`` files.

    Raises:
        FileNotFoundError: nothing there, or no labels beside images.
        ValueError: none of these, damaged, or without images.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"data: no file or folder at {os.fspath(path)!r}")
    if path.is_dir():
        found = [file for name in _IDX_SETS if (file := _idx_images(path, name)) is not None]
        return _idx(found) if found else FolderImages(path)
    if path.suffix.lower() == ".npz":
        return _npz(path)
    if "idx" in path.name:
        return _idx([path])
    raise ValueError(
        "data: expected a folder with one subfolder a class, an .npz file or an IDX file "
        f"(...-idx3-ubyte, or .gz), got {os.fspath(path)!r}"
    )


class FolderImages:
    """One subfolder a class; the files of a class are in the order of their names."""

    held_out: np.ndarray | None = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        self.classes = [p.name for p in folders]
        self.files: list[Path] = []
        labels: list[int] = []
        for label, one in enumerate(folders):
            files = sorted(p for p in one.rglob("*") if p.is_file() and not p.name.startswith("."))
            self.files += files
            labels += [label] * len(files)
        self.labels = np.array(labels, dtype=np.int64)
        if not self.files:
            raise ValueError(
                f"data: expected one subfolder a class with images in each, found none in {folder}"
            )
        empty = [name for i, name in enumerate(self.classes) if i not in set(labels)]
        if empty:
            raise ValueError(
                f"data: expected images in every class, found none in {', '.join(empty)} of "
                f"{folder}"
            )

    def __len__(self) -> int:
        return len(self.files)

    def files_used(self) -> Sequence[Path]:
        return self.files

    def read(self, index: int) -> Any:
        from PIL import Image

        with Image.open(self.files[index]) as image:
            image.load()
            return image

    def check(self, index: int, smallest: int, largest: int) -> Problem | None:
        from PIL import Image

        path = self.files[index]
        name = str(path.relative_to(self.folder))
        try:
            if not path.stat().st_size:
                return Problem(name, "empty", "no bytes")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of large pictures, which are told here
                with Image.open(path) as image:
                    problem = _header_problem(name, image, smallest, largest)
                    if problem is None:
                        image.load()
            return problem
        except Image.DecompressionBombError as error:
            return Problem(name, "huge", str(error))
        except Exception as error:  # whatever a decoder raises of bytes that are no image
            return Problem(name, "broken", f"{type(error).__name__}: {error}")


def _header_problem(name: str, image: Any, smallest: int, largest: int) -> Problem | None:
    """What the header alone tells."""
    width, height = image.size
    if width * height > largest:
        return Problem(name, "huge", f"{width} x {height} pixels, more than {largest}")
    if min(width, height) < smallest:
        return Problem(name, "tiny", f"{width} x {height} pixels, a side below {smallest}")
    if getattr(image, "n_frames", 1) > 1:
        return Problem(name, "animated", f"{image.n_frames} frames")
    kind = {"CMYK": "CMYK", "YCCK": "CMYK", "P": "palette", "PA": "palette"}.get(image.mode)
    if image.mode.startswith(("I", "F")):
        kind = "16-bit"
    return Problem(name, kind, f"mode {image.mode}") if kind else None


@dataclass
class ArrayImages:
    """Images of one size in files that are mapped into memory, one after the other."""

    parts: list[MappedBytes]
    labels: np.ndarray
    classes: list[str]
    held_out: np.ndarray | None
    name: str

    def __post_init__(self) -> None:
        self._starts = np.cumsum([0, *(part.shape[0] for part in self.parts)])
        if not len(self):
            raise ValueError(f"data: expected images in {self.name}, found none")
        if len(self.labels) != len(self):
            raise ValueError(
                f"data: expected one label an image in {self.name}, got {len(self.labels)} of "
                f"{len(self)}"
            )
        if len({part.shape[1:] for part in self.parts}) > 1:
            shapes = [list(part.shape[1:]) for part in self.parts]
            raise ValueError(f"data: expected images of one size in {self.name}, got {shapes}")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def files_used(self) -> Sequence[Path]:
        return [part.path for part in self.parts]

    def read(self, index: int) -> np.ndarray:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[part].row(index - int(self._starts[part]))

    def check(self, index: int, smallest: int, largest: int) -> Problem | None:
        height, width = self.parts[0].shape[1:3]
        name = f"{self.name}[{index}]"
        if height * width > largest:
            return Problem(name, "huge", f"{width} x {height} pixels, more than {largest}")
        if min(height, width) < smallest:
            return Problem(name, "tiny", f"{width} x {height} pixels, a side below {smallest}")
        return None


@dataclass
class MappedBytes:
    """A uint8 array ``shape`` in a file: mapped, or unpacked once into a temporary one that is.

    A pickled copy opens or unpacks it itself.
    """

    shape: tuple[int, ...]
    path: Path
    offset: int
    unpack: Callable[[Path], IO[bytes]] | None = None
    _map: Any = field(default=None, repr=False)

    def row(self, index: int) -> np.ndarray:
        """A copy of ``array[index]``."""
        if self._map is None:
            self._map = self._mapped()
        return np.array(self._map[index])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def _mapped(self) -> Any:
        if self.unpack is None:
            return np.memmap(self.path, np.uint8, "r", self.offset, self.shape)
        with tempfile.TemporaryFile() as file:  # the map keeps its pages once it is closed
            with self.unpack(self.path) as stream:
                while piece := stream.read(_PIECE):
                    file.write(piece)
            file.flush()
            if file.tell() < self.offset + int(np.prod(self.shape)):
                raise ValueError(f"data: expected uint8 {list(self.shape)} in {self.path}, it ends")
            return np.memmap(file, np.uint8, "r", self.offset, self.shape)


def _idx_images(folder: Path, name: str) -> Path | None:
    for ending in ("", ".gz"):
        for stem in (f"{name}-images-idx3-ubyte", f"{name}-images.idx3-ubyte"):
            if (folder / f"{stem}{ending}").is_file():
                return folder / f"{stem}{ending}"
    return None


def _idx(files: Sequence[Path]) -> ArrayImages:
    """Images of IDX files; with two of them the second is held out."""
    parts, labels, held = [], [], []
    for number, path in enumerate(files):
        shape, offset = _idx_header(path, (3, 4))
        if len(shape) == 4 and shape[3] not in (1, 3):
            raise ValueError(f"data: expected 1 or 3 channels in {path}, got {shape[3]}")
        name = path.name.replace("images", "labels")
        name = name.replace("idx3", "idx1").replace("idx4", "idx1")
        choices = [name, f"{name}.gz", name.removesuffix(".gz")]
        beside = next((q for n in choices if (q := path.with_name(n)).is_file()), None)
        if beside is None or beside == path:
            raise FileNotFoundError(f"data: expected labels beside {path}, {name}, found none")
        (count,), start = _idx_header(beside, (1,))
        with _open_idx(beside) as stream:
            stream.read(start)
            values = np.frombuffer(stream.read(count), np.uint8)
        if len(values) != shape[0]:
            raise ValueError(f"data: expected {shape[0]} labels in {beside}, got {len(values)}")
        labels.append(values.astype(np.int64))
        held.append(np.full(shape[0], number > 0))
        unpack = _open_idx if path.suffix == ".gz" else None
        if unpack is None and path.stat().st_size < offset + int(np.prod(shape)):
            raise ValueError(f"data: expected uint8 {list(shape)} in {path}, it ends early")
        parts.append(MappedBytes(shape, path, offset, unpack))
    numbers = np.concatenate(labels)
    classes = [str(i) for i in range(int(numbers.max()) + 1)] if len(numbers) else []
    split = np.concatenate(held) if len(files) > 1 else None
    return ArrayImages(parts, numbers, classes, split, str(files[0]))


def _open_idx(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _idx_header(path: Path, axes: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Shape and first byte of the uint8 array in an IDX file."""
    try:
        with _open_idx(path) as stream:
            start = stream.read(4)
            count = start[3] if len(start) == 4 else 0
            sizes = stream.read(4 * count)
    except (OSError, EOFError) as error:
        raise ValueError(f"data: expected an IDX file, got {path} ({error})") from error
    magic = int.from_bytes(start, "big")
    if count not in axes or magic != _IDX_MAGIC[count] or len(sizes) < 4 * count:
        raise ValueError(
            f"data: expected an IDX file of uint8 with {' or '.join(map(str, axes))} axes, got "
            f"{path}, which starts with {start.hex() or 'nothing'}"
        )
    return struct.unpack(f">{count}I", sizes), 4 + 4 * count


def _npz(path: Path) -> ArrayImages:
    """``images`` and ``labels`` of an archive."""
    try:
        images = ArchivedArray(path, "images")
        stored = ArchivedArray(path, "labels")
    except ValueError as error:
        raise ValueError(f"data: {error}") from error
    shape = images.shape
    grey_or_colour = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if images.dtype != np.uint8 or not grey_or_colour:
        raise ValueError(
            f"data: expected images uint8 [N, H, W] or [N, H, W, 1 or 3] in {path}, "
            f"got {images.dtype} {list(shape)}"
        )
    if stored.dtype.kind not in "iu" or len(stored.shape) != 1:
        raise ValueError(
            f"data: expected labels of integers [N] in {path}, got {stored.dtype} "
            f"{list(stored.shape)}"
        )
    labels = stored.read(0, len(stored)).astype(np.int64)
    if len(labels) and labels.min() < 0:
        raise ValueError(f"data: expected labels of at least 0 in {path}, got {labels.min()}")
    classes = [str(i) for i in range(int(labels.max(initial=-1)) + 1)]
    part = MappedBytes(tuple(shape), path, images._first, _open_npz)
    return ArrayImages([part], labels, classes, None, str(path))


def _open_npz(path: Path) -> IO[bytes]:
    return zipfile.ZipFile(path).open("images.npy")


@dataclass(frozen=True)
class Survey:
    """Which images are used, int64 ``kept``, and what was wrong with the others."""

    kept: np.ndarray
    problems: list[Problem]

    def summary(self) -> str:
        """One line a kind of problem, with the first names."""
        lines = []
        for kind in sorted({p.kind for p in self.problems}):
            ones = [p for p in self.problems if p.kind == kind]
            named = "; ".join(f"{p.name} ({p.reason})" for p in ones[:_NAMED])
            more = f"; and {len(ones) - _NAMED} more" if len(ones) > _NAMED else ""
            lines.append(f"{kind}: {len(ones)}: {named}{more}")
        return "\n".join(lines)


class _Checks(Dataset):
    """What is wrong with each image, in workers."""

    def __init__(self, images: Images, smallest: int, largest: int) -> None:
        self.images, self.smallest, self.largest = images, smallest, largest

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Problem | None:
        return self.images.check(index, self.smallest, self.largest)


def survey(
    images: Images,
    *,
    smallest: int,
    largest: int,
    on_error: str,
    workers: int = 0,
    known: Path | None = None,
) -> Survey:
    """Decode every image once and say which are to be used.

    Args:
        smallest: pixels of the shorter side. largest: pixels of an image.
        on_error: ``"skip"`` leaves out what is not as it should be, ``"refuse"`` raises.
        workers: processes that decode.
        known: a file that keeps what was found, for the next time with the same files.

    Raises:
        ValueError: of ``"refuse"``, all problems in one message; nothing is left; a class without
            images.
    """
    key = _fingerprint(images, smallest, largest)
    found = _recall(known, key)
    if found is None:
        found = _look(images, smallest, largest, workers)
        if known is not None:
            rows = [[i, p.name, p.kind, p.reason] for i, p in found.items()]
            write_atomic(known, json.dumps({"key": key, "left_out": rows}).encode())
    kept = np.array([i for i in range(len(images)) if i not in found], dtype=np.int64)
    result = Survey(kept, list(found.values()))
    if found and on_error == "refuse":
        raise ValueError(
            f"data: expected images as they should be, got {len(found)} of {len(images)} that "
            f"are not (data.on_error=skip leaves them out): "
            f"{result.summary()}".replace("\n", " | ")
        )
    if not len(kept):
        raise ValueError(f"data: expected an image to train on, got none: {result.summary()}")
    missing = set(range(len(images.classes))) - set(images.labels[kept].tolist())
    if missing:
        names = ", ".join(images.classes[i] for i in sorted(missing))
        raise ValueError(f"data: expected an image of every class, got none of {names}")
    return result


def _look(images: Images, smallest: int, largest: int, workers: int) -> dict[int, Problem]:
    """The problems of images, by their numbers."""
    loader = DataLoader(
        _Checks(images, smallest, largest),
        batch_size=_SURVEY_BATCH,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # not the global one
    )
    found = (problem for batch in loader for problem in batch)
    return {i: problem for i, problem in enumerate(found) if problem is not None}


def _fingerprint(images: Images, smallest: int, largest: int) -> str:
    """A digest of the names, sizes and times of the files, and of what is asked of them."""
    digest = hashlib.sha256(f"{smallest} {largest} {len(images)}".encode())
    for path in images.files_used():
        told = path.stat()
        digest.update(f"\n{path} {told.st_size} {told.st_mtime_ns}".encode())
    return digest.hexdigest()


def _recall(known: Path | None, key: str) -> dict[int, Problem] | None:
    """What a file says of the same images; None where it says nothing, or of others."""
    try:
        kept = json.loads(known.read_bytes()) if known is not None else {}
        if kept["key"] == key:
            return {int(i): Problem(*map(str, rest)) for i, *rest in kept["left_out"]}
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return None
