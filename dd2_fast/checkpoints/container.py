"""Opening a checkpoint without running anything in it."""

from __future__ import annotations

import os
import pickle
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch

from ..reading import check_regular, shown
from . import checksums, harmless
from .limits import Budget, TooLargeError
from .screen import screen_older, screen_zip

_LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):  # else a child could be left with a lock that nobody holds
    os.register_at_fork(
        before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release
    )
_ADVICE = ("Weights only load failed", "Please file an issue")  # torch's, to its own users
# What a download leaves where a checkpoint was wanted, by how it begins.
_NO_CHECKPOINT = {
    b"version https://git-lfs": "a Git LFS pointer to it; git lfs pull brings the file itself",
    b"<!doctype": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
}
_REFUSED = re.compile(r"GLOBAL ([\w.]+)")


class UnsafeFileError(ValueError):
    """A pickle that names more than tensors and plain data; ``names`` is what it names."""

    def __init__(self, path: Path, names: list[str]) -> None:
        names = [shown(name) for name in names]
        super().__init__(
            f"{path}: expected tensors and plain data, but its pickle calls {', '.join(names)}, "
            "which could run anything, so it was not opened; if you trust the file, open it with "
            "torch.load(..., weights_only=False) and pass the state dict"
        )
        self.names = names


@dataclass(frozen=True)
class Contents:
    """What a file or a state dict holds.

    Attributes:
        source: the path, or what stands for it in messages.
        container: the kind of file.
        tree: tensors and nested dictionaries by name.
        metadata: that of a safetensors file.
        compared: how many records or tensors were compared with their checksums; 0 where there are
            none, None where it was not asked for, see :func:`.checksums.checked`.
    """

    source: str
    container: str
    tree: Mapping[Any, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)
    compared: int | None = None


def open_file(path: Path) -> Contents:
    """The contents of a PyTorch or safetensors file, told by its first bytes.

    Tensors are views of the memory-mapped file (PyTorch's older format, and archives that something
    else has compressed, are read instead). Of what a pickle names, tensors and the plain values of
    :mod:`.harmless` are let through. What a file declares is looked at before it is made, see
    :class:`.limits.Budget`, and small files, or all that :func:`.checksums.checked` says, are
    compared with their checksums.

    Raises:
        FileNotFoundError: no such file. UnsafeFileError: a pickle that could run code.
        TooLargeError: contents that would take more memory than they may.
        ValueError: truncated, damaged or another format.
    """
    check_regular(path, "a checkpoint file")
    with open(path, "rb") as file:
        start = file.read(32)
    if start[8:9] == b"{":
        return _open_safetensors(path)
    if start.startswith(b"PK\x03\x04"):
        tree, compared = _open_torch(path, screen_zip, checksums.check_archive)
        return Contents(str(path), "PyTorch", tree, compared=compared)
    if start.startswith(b"\x80"):
        tree, compared = _open_torch(path, screen_older, lambda path: 0)
        return Contents(str(path), "PyTorch, older format", tree, compared=compared)
    for beginning, what in _NO_CHECKPOINT.items():
        if start.lstrip().lower().startswith(beginning):
            raise ValueError(f"{path}: expected a PyTorch or safetensors file, got {what}")
    if not start:
        raise ValueError(f"{path}: expected a PyTorch or safetensors file, got an empty one")
    raise _damaged(
        path, "PyTorch or safetensors", f"or another format; they start with {start[:9]!r}"
    )


def _open_safetensors(path: Path) -> Contents:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise _damaged(path, "safetensors", str(error)) from error
    compared = None
    if checksums.is_due(path):
        try:
            compared = checksums.check_tensors(tensors, metadata)
        except ValueError as error:
            raise _damaged(path, "safetensors", str(error)) from error
    return Contents(str(path), "safetensors", tensors, metadata, compared)


def _open_torch(
    path: Path, screen: Callable[[Path], bool], check: Callable[[Path], int]
) -> tuple[Mapping[Any, Any], int | None]:
    """The object in a file that ``screen`` has looked at, which says whether it can be mapped.

    Where that is due, ``check`` has compared it with its checksums and says how many there were.
    """
    Budget(path)  # a wrong limit is no damage
    try:
        mmap = screen(path)
        compared = check(path) if checksums.is_due(path) else None
    except TooLargeError:
        raise
    except ValueError as error:
        raise _damaged(path, "PyTorch", str(error)) from error
    try:
        with _harmless_allowed():
            tree = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mmap)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a broken pickle fails in every way there is
        if refused := _refused(path, error):
            raise UnsafeFileError(path, refused) from error
        raise _damaged(path, "PyTorch", _first_reason(error)) from error
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path}: expected a dictionary of tensors, got {type(tree).__name__}")
    return tree, compared


@contextmanager
def _harmless_allowed() -> Iterator[None]:
    """Let plain values through, such as the arguments that LlamaGen's trainer pickles.

    torch keeps one list for the process, so threads take turns; else one could leave the other's
    entries behind.
    """
    with _LOCK, torch.serialization.safe_globals(harmless.NAMES):  # type: ignore[arg-type]
        yield


def _refused(path: Path, error: Exception) -> list[str]:
    """What the pickle names that ``weights_only`` does not allow."""
    if not isinstance(error, pickle.UnpicklingError):
        return []
    names = set(_REFUSED.findall(str(error)))
    try:
        with _harmless_allowed():
            names |= set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # the older format, or broken further on: the first name will do
        pass
    return sorted(names)


def _first_reason(error: Exception) -> str:
    """The first line of an error that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(_ADVICE)] or lines
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _damaged(path: Path, expected: str, reason: str) -> ValueError:
    return ValueError(
        f"{path}: expected a whole {expected} file, got {path.stat().st_size} bytes that are "
        f"truncated or damaged ({shown(reason)})"
    )
