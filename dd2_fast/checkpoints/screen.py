"""A look at a PyTorch file before torch opens it: that it is whole, and how much it would take."""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .limits import Budget
from .pickles import PickleScan

_MAGIC = 0x1950A86A20F9469CFC6C  # torch's older format begins with it, as a pickle of its own
_HEADER_PICKLES = 3  # magic number, protocol, system; then the object, then its storages' keys
_TORCHSCRIPT = "constants.pkl"
_ENCRYPTED = 1
_READ = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_DAMAGES = (
    *(zipfile.BadZipFile, struct.error, EOFError, NotImplementedError),
    *(RuntimeError, OSError, OverflowError),
)


def screen_zip(path: Path) -> bool:
    """Whether the records of a PyTorch archive can be mapped; torch never compresses them.

    Raises:
        TooLargeError: its contents would take more than they may.
        ValueError: damaged, without the name of the file.
    """
    budget = Budget(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        # As torch.load itself does; its annotations leave some methods out.
        reader: Any = torch._C.PyTorchFileReader(str(path))
        names = reader.get_all_records()
        starts = [reader.get_record_offset(name) for name in names]
    except _DAMAGES as error:
        raise ValueError(_first_line(error)) from error
    _check_members(members, names, starts, path.stat().st_size)
    budget.spend(sum(member.file_size for member in members))
    if _TORCHSCRIPT not in names:  # else torch refuses it, with a better reason
        by_name = dict(zip(names, members, strict=True))
        try:
            pickled = reader.get_record("data.pkl")
        except RuntimeError as error:
            raise ValueError(_first_line(error)) from error
        if len(pickled) != by_name["data.pkl"].file_size:
            raise ValueError("its archive has two directories")
        scan = PickleScan(io.BytesIO(pickled), budget)
        _check_storages(scan.storages, {n: member.file_size for n, member in by_name.items()})
    return all(member.compress_type == zipfile.ZIP_STORED for member in members)


def screen_older(path: Path) -> bool:
    """The same of torch's older format, pickles and then the data, which torch never maps."""
    budget = Budget(path)
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
    ):
        # mmap has what pickletools calls: read, readline and tell.
        if PickleScan(view, budget).top != _MAGIC:  # type: ignore[arg-type]
            return False  # torch looks no further
        for _ in range(_HEADER_PICKLES - 1):
            PickleScan(view, budget)  # type: ignore[arg-type]
        storages = PickleScan(view, budget).storages  # type: ignore[arg-type]
        PickleScan(view, budget)  # type: ignore[arg-type]
        declared, left = sum(storages.values()), len(view) - view.tell()
    if declared > left:
        raise ValueError(f"its tensors are of {declared} bytes, and {left} bytes are left for them")
    budget.spend(declared)
    return False


def _check_members(
    members: list[zipfile.ZipInfo], names: list[str], starts: list[int], size: int
) -> None:
    """Raise ValueError unless every record is there once, apart from the others, as torch sees it.

    torch takes the first of two names that differ in case alone, others the last.
    """
    if len({member.filename.lower() for member in members}) < len(members):
        raise ValueError("its archive has a record twice")
    if len(members) != len(names) or not all(
        member.filename.endswith(name) for member, name in zip(members, names, strict=True)
    ):
        raise ValueError("its archive has records in several folders, or two directories")
    for member in members:
        if member.compress_type not in _READ or member.flag_bits & _ENCRYPTED:
            raise ValueError("its archive is encrypted, or compressed by what torch does not read")
    ends = [start + member.compress_size for start, member in zip(starts, members, strict=True)]
    headers = sorted(member.header_offset for member in members)
    for end, header in zip(sorted(ends), [*headers[1:], size], strict=True):
        if end > header:
            raise ValueError("its archive has records that overlap")


def _check_storages(storages: Mapping[str, int], records: Mapping[str, int]) -> None:
    for key, size in storages.items():
        found = records.get(f"data/{key}")
        if found is None or found < size:
            there = "nothing" if found is None else f"{found}"
            raise ValueError(f"its storage {key!r} is of {size} bytes, and {there} is there")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'damaged'}"
