"""Plain values beside weights are let through as what they are; NumPy itself is not called."""

from __future__ import annotations

import argparse
import pathlib
import types
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints.tiny import teacher_tensors

from dd2_fast import checkpoints
from dd2_fast.checkpoints.container import UnsafeFileError, open_file
from dd2_fast.checkpoints.harmless import Dtype, plain
from dd2_fast.checkpoints.limits import TooLargeError

pytestmark = [
    pytest.mark.usefixtures("family"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
]
VALUES: dict[str, tuple[Any, Any]] = {
    "int64": (np.int64(-3), -3),
    "uint8": (np.uint8(200), 200),
    "float32": (np.float32(0.5), 0.5),
    "float16": (np.float16(0.5), 0.5),
    "float64": (np.float64(1e300), 1e300),
    "bool": (np.bool_(True), True),
    "text": (np.str_("hé"), "hé"),
    "complex": (np.complex64(1 + 2j), 1 + 2j),
    "big endian": (np.array([1, 2], dtype=">i4"), [1, 2]),
    "vector": (np.arange(3), [0, 1, 2]),
    "matrix": (np.arange(6.0).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
    "by columns": (np.asfortranarray(np.arange(6).reshape(2, 3)), [[0, 1, 2], [3, 4, 5]]),
    "empty": (np.zeros((0, 3)), []),
    "no dimension": (np.array(4), 4),
    "objects": (np.array([1, None, "a"], dtype=object), [1, None, "a"]),
    "path": (Path("/data/x"), PurePosixPath("/data/x")),
    "windows path": (PureWindowsPath("c:/x"), PureWindowsPath("c:/x")),
    "namespace": (types.SimpleNamespace(a=1), types.SimpleNamespace(a=1)),
    "torch": (torch.float16, torch.float16),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("where", ["beside", "in a namespace", "in a list"])
@pytest.mark.parametrize("zipped", [True, False])
def test_values_beside_weights(tmp_path: Path, name: str, where: str, zipped: bool):
    value, want = VALUES[name]
    path = tmp_path / "x.pth"
    held = {"beside": value, "in a namespace": argparse.Namespace(v=value), "in a list": [value]}
    tree = {"model": teacher_tensors(), "value": held[where]}
    torch.save(tree, path, _use_new_zipfile_serialization=zipped)
    before = torch.serialization.get_safe_globals()
    got = open_file(path).tree["value"]
    got = {"beside": lambda: got, "in a namespace": lambda: got.v, "in a list": lambda: got[0]}[
        where
    ]()
    assert plain(got) == want and type(plain(got)) is type(want)
    assert checkpoints.load(path).config["width"] == 4
    assert torch.serialization.get_safe_globals() == before


@pytest.mark.parametrize(
    "value",
    [np.dtype("float32"), np.dtype(">i8"), np.float32, np.int64, type(np.dtype("f8"))],
)
def test_dtypes_and_their_classes(tmp_path: Path, value):
    torch.save({"model": teacher_tensors(), "dtype": value}, tmp_path / "x.pth")
    assert isinstance(open_file(tmp_path / "x.pth").tree["dtype"], Dtype)


class Call:
    """Unpickles as a call of what a name stands for, with any arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Stated(Call):
    """The same, with a state to be set."""

    def __init__(self, state: Any, function: Any, *arguments: Any) -> None:
        super().__init__(function, *arguments)
        self.state = state

    def __reduce__(self) -> Any:
        return (*self.call, self.state)


NEW = np.zeros(0).__reduce__()[0]
SCALAR = np.float32(0).__reduce__()[0]


@pytest.mark.parametrize(
    "payload",
    [
        Stated((1, (10**12,), np.dtype("f8"), False, b"abc"), NEW, np.ndarray, (0,), b"b"),
        Stated((1, (-1,), np.dtype("f8"), False, b""), NEW, np.ndarray, (0,), b"b"),
        Stated((1, (1,), np.dtype("O"), False, b"12345678"), NEW, np.ndarray, (0,), b"b"),
        Stated((1,), NEW, np.ndarray, (0,), b"b"),
        Call(SCALAR, np.dtype("V100000000"), b""),
        Call(SCALAR, np.dtype("f8"), b"abc"),
        Call(np.float64, "1e5"),
        Call(np.bytes_, 10**12),
        Call(pathlib.PurePosixPath, 3),
    ],
)
def test_values_that_are_not_what_they_say_are_refused(tmp_path: Path, payload):
    path = tmp_path / "x.pth"
    torch.save({"model": teacher_tensors(), "value": payload}, path)
    with pytest.raises(
        ValueError, match=r"x\.pth: expected (a whole PyTorch file|contents that take)"
    ):
        checkpoints.load(path)


def test_an_array_of_a_size_without_data_is_refused(tmp_path: Path):
    path = tmp_path / "x.pth"
    torch.save({"model": teacher_tensors(), "value": Call(NEW, np.ndarray, (10**13,), "d")}, path)
    with pytest.raises(TooLargeError, match="expected contents that take at most"):
        open_file(path)


@pytest.mark.parametrize("function", [np.fromfile, np.load, np.save, np.frombuffer, np.full])
def test_numpys_functions_are_refused_by_name(tmp_path: Path, function):
    path = tmp_path / "x.pth"
    torch.save({"model": teacher_tensors(), "value": Call(function, str(tmp_path / "a"))}, path)
    with pytest.raises(UnsafeFileError, match="numpy"):
        checkpoints.load(path)


def test_objects_inside_an_array_are_of_the_same_few_kinds(tmp_path: Path):
    value = np.array([Call(print, "ran"), 1], dtype=object)
    torch.save({"model": teacher_tensors(), "value": value}, tmp_path / "x.pth")
    with pytest.raises(UnsafeFileError, match="print"):
        checkpoints.load(tmp_path / "x.pth")
