"""One job at a time for each output: locks that the end of a process releases, a kill included."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from torch import distributed

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_SHOWN = 200  # characters of a command
_LONGEST = 150  # bytes of a name
_T = TypeVar("_T")


class NoLocksError(OSError):
    """The file system has no locks."""


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold ``output``, a folder that exists or a file to be written, for the block.

    The lock is a file that names the process: ``.lock`` in a folder, ``.NAME.lock`` beside a file;
    it goes with the block, and that of a killed process is taken over. In a torch.distributed group
    the first process holds it for all. What killed processes left of the output is removed.

    Raises:
        BlockingIOError: another job has it; the message says which. OSError: it cannot be made.
    """
    from .files import remove_leftovers

    output = Path(os.path.realpath(output))
    path = lock_path(output)
    handles: list[int] = []  # empty on all processes but the first, and where there are no locks
    agreed(lambda: _hold(output, path, handles))
    try:
        if handles:
            remove_leftovers(output)
        yield
    finally:
        for handle in handles:
            release(path, handle)


def lock_path(output: Path) -> Path:
    """The file that stands for an output's lock."""
    return output / LOCK if output.is_dir() else output.with_name(f".{short_name(output)}{LOCK}")


def short_name(path: Path) -> str:
    """A file's name, or where it is long what stands for it, which neighbours' names may hold."""
    name = os.fsencode(path.name)
    if len(name) <= _LONGEST:
        return path.name
    return f"{name[:_LONGEST].decode(errors='ignore')}~{hashlib.sha256(name).hexdigest()[:8]}"


def take(path: Path) -> int | None:
    """Make the file and lock it; its descriptor, or None where a living process has the lock.

    Raises:
        NoLocksError: the file system has no locks. OSError: the file cannot be made.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _flock(path, handle)
            if _is_still(path, handle):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder removed it between the two calls


def release(path: Path, handle: int) -> None:
    """Remove the file and give back the lock; both may be gone with their folder."""
    with suppress(OSError):
        if _is_still(path, handle):
            path.unlink()
    os.close(handle)


def agreed(call: Callable[[], _T]) -> _T:
    """What ``call`` returns on the first process of a torch.distributed group, for all of them;
    all raise what it raises there. Without a group, simply call it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return call()
    told: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            told[0] = call()
        except Exception as error:
            told[1] = error
    distributed.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    return told[0]


def _hold(output: Path, path: Path, handles: list[int]) -> None:
    """Lock an output by the file at ``path``, which gets this process's name."""
    try:
        handle = take(path)
    except NoLocksError as error:
        with suppress(OSError):
            path.unlink()
        warnings.warn(
            f"{output}: its file system has no locks ({error.strerror}); no other job may write "
            "there meanwhile",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    if handle is None:
        raise BlockingIOError(
            errno.EWOULDBLOCK,
            f"expected no other job there, found {_holder(path)}; wait for it, or give another "
            "place",
            str(output),
        )
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    command = " ".join([name, *sys.argv[1:]])
    text = f"process {os.getpid()} on {socket.gethostname()}: {command}"
    os.ftruncate(handle, 0)
    os.write(handle, text.encode(errors="backslashreplace"))
    handles.append(handle)


def _holder(path: Path) -> str:
    try:
        text = path.read_bytes()[: 4 * _SHOWN].decode(errors="replace")
    except OSError:
        text = ""
    shown = "".join(c if c.isprintable() else " " for c in text).strip()
    return f"{shown[:_SHOWN]}..." if len(shown) > _SHOWN else shown or "another process"


def _flock(path: Path, handle: int) -> None:
    if fcntl is None:
        raise NoLocksError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(path))
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        raise NoLocksError(error.errno, error.strerror, str(path)) from error


def _is_still(path: Path, handle: int) -> bool:
    """Whether the open file is the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
