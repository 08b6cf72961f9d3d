"""Checksums of a file's contents: made when it is written, compared when it is read.

PyTorch's archives have a CRC-32 of each record, which torch does not look at; files of ours have
one of each tensor in their metadata. PyTorch's older format and others' safetensors have none.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..reading import parse_json, shown

OWN = "dd2_fast"  # the metadata that tells a file of ours

_KEY = "dd2_fast_crc32"
_HEADER = ""  # in place of a tensor's name
_SMALL = 1 << 24  # bytes, whose checksums take some 6 ms, a seventh of what building a network does
_PIECE = 1 << 20
_CHECKED: ContextVar[bool | None] = ContextVar("checked", default=None)


class DamagedError(ValueError):
    """Contents that are not what was written; the message does not name the file."""


@contextmanager
def checked(verify: bool | None) -> Iterator[None]:
    """Let files that this thread opens meanwhile be compared with their checksums, or not.

    Args:
        verify: None changes nothing; outside of any such block, small files are compared.

    Raises:
        TypeError: not a bool.
    """
    if verify is None:
        yield
        return
    if not isinstance(verify, bool):
        raise TypeError(f"verify: expected a bool, got {type(verify).__name__}")
    token = _CHECKED.set(verify)
    try:
        yield
    finally:
        _CHECKED.reset(token)


def is_due(path: Path) -> bool:
    """Whether a file is to be compared: what :func:`checked` says, else those up to 16 MiB."""
    chosen = _CHECKED.get()
    return path.stat().st_size <= _SMALL if chosen is None else chosen


def checksums(tensors: Mapping[str, Tensor], header: str) -> dict[str, str]:
    """The metadata of a file with these tensors and this header: it and their checksums."""
    values = {name: _of_tensor(value) for name, value in tensors.items()}
    noted = {_HEADER: zlib.crc32(header.encode()), **values}
    return {OWN: header, _KEY: json.dumps(noted, sort_keys=True)}


def check_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Compare tensors and the header with what :func:`checksums` noted; how many there are.

    Raises:
        DamagedError: names the first that differs.
    """
    if _KEY not in metadata:
        return 0
    noted = parse_json(metadata[_KEY], f"metadata {_KEY!r}")
    if noted.pop(_HEADER, None) != zlib.crc32(metadata.get(OWN, "").encode()):
        raise DamagedError(f"its metadata {OWN!r} is not what was written")
    both = [name for name in tensors if name in noted]  # others are missing, or unexpected
    for name in both:
        if noted[name] != _of_tensor(tensors[name]):
            raise DamagedError(f"its tensor {shown(name)} is not what was written")
    return len(both)


def check_archive(path: Path) -> int:
    """Read every record of a PyTorch archive and compare it with its checksum; how many there are.

    None is compared where torch was told to make no checksums, which are zero then.

    Raises:
        DamagedError: names the first that differs.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if not any(member.CRC for member in members):
            return 0
        for member in members:
            try:
                with archive.open(member) as record:
                    while record.read(_PIECE):
                        pass
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise DamagedError(
                    f"its record {shown(member.filename)} is not what was written"
                ) from error
    return len(members)


def sha256_of_weights(model: nn.Module) -> str:
    """The SHA-256 over names, dtypes, shapes and bytes of a model's state dict, as hex.

    So a released file and its converted copy are the same teacher. Changing the dtype changes it.
    """
    return _sha256(model.state_dict())


def fingerprint(*models: nn.Module) -> str:
    """16 hex digits that tell models by all that their results depend on.

    That is their weights, the tensors in their ``data`` and their ``config``, not where they are
    kept.
    """
    digest = hashlib.sha256()
    for model in models:
        config = json.dumps(getattr(model, "config", None), sort_keys=True, default=repr)
        digest.update(f"{type(model).__qualname__} {config}\n".encode())
        for tensors in (model.state_dict(), getattr(model, "data", {})):
            digest.update(_sha256(tensors).encode())
    return digest.hexdigest()[:16]


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(_bytes_of(value))
    return digest.hexdigest()


def _of_tensor(value: Tensor) -> int:
    about = f"{value.dtype} {list(value.shape)}".encode()
    return zlib.crc32(_bytes_of(value), zlib.crc32(about))


def _bytes_of(value: Tensor) -> Any:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
