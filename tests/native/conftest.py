from __future__ import annotations

import ctypes
import functools
import shutil
from collections.abc import Callable

import pytest
from native.build import NATIVE_DIR, build_shared, compiler_command
from native.structs import Shim


@pytest.fixture(scope="session")
def shim_of() -> Callable[[str], Shim]:
    """The launcher and kernels of an operator on the CPU, compiled at the first call."""
    return functools.cache(Shim)


@pytest.fixture(scope="session")
def functions(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Functions of the kernels' headers."""
    if shutil.which(compiler_command()[0]) is None:
        pytest.skip(f"no C++ compiler {compiler_command()[0]!r}")
    folder = tmp_path_factory.mktemp("functions")
    return ctypes.CDLL(str(build_shared([NATIVE_DIR / "functions_shim.cpp"], folder)))
