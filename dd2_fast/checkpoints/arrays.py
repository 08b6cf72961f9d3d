"""Arrays in `.npz` archives, looked at before they are read, and read in parts."""

from __future__ import annotations

import errno
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..reading import shown

_HEADER = 12 + 10_000  # bytes of NumPy's longest header that it would parse
_PIECE = 1 << 20
_SMALL, _EXPANSION = 1 << 30, 100  # what an archive may become: bytes, or times its own size
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError),
    *(RuntimeError, ValueError, MemoryError, RecursionError, OverflowError),
)


class ArchivedArray:
    """An array in an archive; its rows along the first axis are read when they are asked for.

    Rows in order are read once through; going back in a compressed archive reads it again. A
    process that is forked, or gets a pickled copy, opens the archive itself.

    Args:
        path: the archive. name: of the array, as in ``np.load(path)[name]``.
        max_bytes: what it may hold once unpacked; None: 1 GiB or 100 times the archive's own size,
            whichever is more.

    Raises:
        ValueError: it is no archive, holds no such array or not what that declares, or more than
            ``max_bytes``; the message names the file. OSError: it cannot be read.
    """

    def __init__(self, path: Path, name: str = "arr_0", *, max_bytes: int | None = None) -> None:
        self.path, self.name = path, name
        with self._errors(), zipfile.ZipFile(path) as archive:
            if f"{name}.npy" not in archive.namelist():
                found = [n.removesuffix(".npy") for n in archive.namelist()[:4]]
                raise ValueError(f"expected an array {name}, got {found}")
            self.comment = archive.comment
            info = archive.getinfo(f"{name}.npy")
            size = path.stat().st_size
            if max_bytes is None:
                max_bytes = max(_SMALL, _EXPANSION * size)
            if info.file_size > max_bytes:
                raise ValueError(
                    f"expected at most {max_bytes} bytes once unpacked (max_bytes), got "
                    f"{info.file_size} of {name} in an archive of {size}"
                )
            with archive.open(info) as stream:
                start = io.BytesIO(stream.read(_HEADER))
            self.shape, fortran, self.dtype = _read_header(start)
            self._first = start.tell()
            declared = math.prod(self.shape) * self.dtype.itemsize
            if fortran and len(self.shape) > 1:
                raise ValueError(f"expected {name} in C order, got Fortran's")
            if self.dtype.hasobject or not self.shape or min(self.shape) < 0:
                raise ValueError(f"expected an array of numbers {name}, got {self.dtype}")
            if declared != info.file_size - self._first:
                raise ValueError(
                    f"expected {declared} bytes, as {name} of {self.dtype} {list(self.shape)} "
                    f"has, got {info.file_size - self._first}"
                )
        self._opened: tuple[int, zipfile.ZipFile, IO[bytes]] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def read(self, first: int, stop: int) -> np.ndarray:
        """The rows from ``first`` to before ``stop``."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        with self._errors():
            stream = self._stream()
            _go(stream, self._first + first * row)
            data = stream.read((stop - first) * row)
            rows = np.frombuffer(data, dtype=self.dtype).reshape(stop - first, *self.shape[1:])
        return rows.copy()

    def check(self) -> None:
        """Read the whole array in parts and compare it with its checksum.

        Raises:
            ValueError: it is damaged.
        """
        with (
            self._errors(),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{self.name}.npy") as stream,
        ):
            while stream.read(_PIECE):
                pass

    def _stream(self) -> IO[bytes]:
        if self._opened is None or self._opened[0] != os.getpid():
            archive = zipfile.ZipFile(self.path)
            self._opened = os.getpid(), archive, archive.open(f"{self.name}.npy")
        return self._opened[2]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Name the file in whatever a broken archive raises."""
        try:
            yield
        except (OSError, *_BROKEN) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a seek to nowhere
                raise
            reason = shown(str(error)) or type(error).__name__
            if not reason.startswith("expected"):
                reason = f"expected a whole .npz archive, got a damaged one or none ({reason})"
            raise ValueError(f"{reason} in {self.path}") from error


def array_names(path: Path) -> list[str]:
    """The names of the arrays in an archive; ValueError that names the file for what is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except _BROKEN as error:
        raise ValueError(
            f"expected a whole .npz archive, got a damaged one or none ({shown(str(error))}) "
            f"in {path}"
        ) from error
    return [name.removesuffix(".npy") for name in names if name.endswith(".npy")]


def _go(stream: IO[bytes], position: int) -> None:
    """As seek, which reads what it passes over in small pieces."""
    if position < stream.tell():
        stream.seek(0)
    while (ahead := position - stream.tell()) > 0:
        if not stream.read(min(ahead, _PIECE)):
            raise EOFError("the array ends early")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"expected NumPy's format 1.0 or 2.0, got {version}")
