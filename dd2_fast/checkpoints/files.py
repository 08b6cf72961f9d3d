"""Atomic writes: a reader sees the old file or the new one, never a part."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .locks import LOCK, NoLocksError, release, short_name, take

# File systems that cannot sync a folder, or a file, say one of these: CIFS, FUSE, vboxsf.
_NO_SYNC = frozenset(
    getattr(errno, name)
    for name in ("EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EBADF", "EACCES", "EPERM", "EISDIR")
)
_LEFT = re.compile(r"\.(?P<name>.+)\.\d+(?:-\w+)?\.tmp", re.DOTALL)
_ABANDONED = 24 * 3600.0  # seconds without a change, where there are no locks to ask


def check_writable(folder: Path) -> None:
    """Create ``folder`` if needed; raise OSError with the reason unless files can be made there."""
    try:
        Path(os.path.realpath(folder)).mkdir(parents=True, exist_ok=True)  # the target of a link
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(
            error.errno, f"cannot write to the folder: {error.strerror}", str(folder)
        ) from error


def check_file(path: Path) -> None:
    """Raise OSError with the reason unless a file can be written at ``path``, or replaced there."""
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "expected a file to write, found a folder", str(path))
    check_writable(Path(os.path.realpath(path)).parent)
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "cannot write: the file is read-only", str(path))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file to write; when the block is done, fsync and rename it to ``path``.

    It lies in a folder ``.NAME.PID-RANDOM.tmp`` beside ``path``, locked while this process lives,
    so that what its writer makes beside it goes too. A symbolic link at ``path`` stays, and its
    target is replaced. The file's mode is what the umask says, whatever its writer set.

    OSError names ``path`` and the reason; the temporary folder goes whatever happens.
    """
    target = Path(os.path.realpath(path))
    try:
        with _temporary_folder(target) as (folder, mode):
            temporary = folder / target.name
            yield temporary
            with suppress(OSError):
                os.chmod(temporary, mode)
            _sync(temporary)
            os.replace(temporary, target)
        _sync(target.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, f"cannot write: {error.strerror}", str(path)) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary neighbour, fsync it, and rename it to ``path``."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def remove_leftovers(output: Path) -> None:
    """Remove what killed processes left of a file, or of all that they wrote in a folder.

    What a living process writes stays, here and on other machines.
    """
    output = Path(os.path.realpath(output))
    folder, name = (output, None) if output.is_dir() else (output.parent, short_name(output))
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _LEFT.fullmatch(entry.name)
            if match is not None and name in (None, match["name"]):
                with suppress(OSError):
                    _remove(Path(entry.path), entry.is_dir(follow_symlinks=False))


def _remove(left: Path, is_folder: bool) -> None:
    if not is_folder:  # of versions before this one
        left.unlink()
        return
    lock = left / LOCK
    if not lock.exists():  # killed before it had one, or its process is about to make it anew
        left.rmdir()
        return
    try:
        handle = take(lock)
    except NoLocksError:
        if time.time() - max(p.stat().st_mtime for p in (left, *left.iterdir())) > _ABANDONED:
            shutil.rmtree(left)
        return
    if handle is not None:
        shutil.rmtree(left, ignore_errors=True)
        release(lock, handle)


@contextmanager
def _temporary_folder(target: Path) -> Iterator[tuple[Path, int]]:
    """A locked folder beside ``target``, and the mode of a file that is made here."""
    while True:
        token = f"{os.getpid()}-{os.urandom(4).hex()}"
        folder = target.with_name(f".{short_name(target)}.{token}.tmp")
        folder.mkdir()
        try:
            handle = take(folder / LOCK)
        except NoLocksError:
            handle = None
            break
        except FileNotFoundError:
            if not target.parent.is_dir():
                raise
            continue  # another process took the empty folder for a leftover
        if handle is not None:
            break
    try:
        yield folder, os.stat(folder / LOCK).st_mode & 0o777
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _sync(path: Path) -> None:
    """Bring a file or a folder onto the disk, where its file system can."""
    if os.name != "posix" and path.is_dir():
        return
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
