"""Atomic writes: a reader sees the old file or the new one, never a part."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_writable(folder: Path) -> None:
    """Create ``folder`` if needed; raise OSError with the reason unless files can be made there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(
            error.errno, f"cannot write to the folder: {error.strerror}", str(folder)
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary neighbour to write; when the block is done, fsync and rename it to ``path``.

    OSError names ``path`` and the reason; the temporary file goes whatever happens.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Made here, so that a folder one cannot write to is an OSError whoever writes the file.
        with open(temporary, "wb"):
            pass
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, f"cannot write: {error.strerror}", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary neighbour, fsync it, and rename it to ``path``."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
