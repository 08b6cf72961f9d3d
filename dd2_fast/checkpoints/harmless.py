"""Plain values that training code pickles beside weights, let through as what runs nothing.

A pickle names what it calls. Each name here stands for a function or class of this module or of
``pathlib``'s pure paths, so NumPy's own constructors are never called with what a file says.
"""

from __future__ import annotations

import argparse
import math
import re
import types
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

_PLAIN = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,6}")
_OBJECTS = "O8"


class Dtype:
    """A NumPy dtype, or the class of one, by its text such as ``i8``."""

    def __init__(self, text: Any, align: bool = False, copy: bool = False) -> None:
        if isinstance(text, bytes):
            text = text.decode("ascii")
        if not isinstance(text, str):
            raise ValueError(f"a NumPy dtype: expected its text, got {type(text).__name__}")
        self.text, self.order = text, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.order = order if order in ("<", ">") else "="

    def __repr__(self) -> str:
        return f"dtype({self.text})"

    def numpy(self) -> np.dtype[Any]:
        """The dtype itself; ValueError unless it is of numbers or text."""
        if not _PLAIN.fullmatch(self.text):
            raise ValueError(f"a NumPy dtype: expected one of numbers or text, got {self.text!r}")
        return np.dtype(self.order + self.text)


class Array:
    """A NumPy array as nested lists."""

    values: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if isinstance(data, list) and dtype.text == _OBJECTS:
            self.values = data
            return
        kind = dtype.numpy()
        data = data.encode("latin1") if isinstance(data, str) else data
        if math.prod(shape) * kind.itemsize != len(data):
            raise ValueError(f"a NumPy array: expected {shape} values, got {len(data)} bytes")
        flat = np.frombuffer(data, kind)
        array = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
        self.values = array.tolist()

    def __repr__(self) -> str:
        return f"array({self.values!r})"


def _new_array(*_: Any) -> Array:
    return Array()


def _scalar(dtype: Dtype, data: Any = b"") -> Any:
    """A NumPy scalar as the Python number or text it is."""
    kind = dtype.numpy()
    data = data.encode("latin1") if isinstance(data, str) else data
    if len(data) != kind.itemsize:
        raise ValueError(f"a NumPy scalar: expected {kind.itemsize} bytes, got {len(data)}")
    return np.frombuffer(data, kind)[0].item()


def _no_bytes() -> bytes:
    """What an empty array's values are pickled as."""
    return b""


def _names() -> list[tuple[Any, str]]:
    """What is let through, with the names that it has in a pickle."""
    names: list[tuple[Any, str]] = [
        (argparse.Namespace, "argparse.Namespace"),
        (types.SimpleNamespace, "types.SimpleNamespace"),
        (_no_bytes, "builtins.bytes"),
        (Dtype, "numpy.dtype"),
        (Array, "numpy.ndarray"),
    ]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names += [(_new_array, f"{module}._reconstruct"), (_scalar, f"{module}.scalar")]
    for module in ("pathlib", "pathlib._local"):
        for path, pure in (("Posix", PurePosixPath), ("Windows", PureWindowsPath)):
            names += [(pure, f"{module}.{path}Path"), (pure, f"{module}.Pure{path}Path")]
    for kind in {one for one in np.sctypeDict.values() if one.__module__ == "numpy"}:
        names.append((Dtype(kind.__name__), f"numpy.{kind.__name__}"))
    for name in np.dtypes.__all__:
        names.append((Dtype(name), f"numpy.dtypes.{name}"))
    return names


NAMES = _names()


def plain(value: Any) -> Any:
    """``value``, or the lists that an :class:`Array` holds."""
    return value.values if isinstance(value, Array) else value
