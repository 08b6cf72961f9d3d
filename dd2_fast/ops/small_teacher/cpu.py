"""A small teacher by the C++ kernel of ``csrc/cpu/small_teacher.cpp``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..native import cpu_launcher
from . import native


def small_teacher(*arguments: Any) -> Tensor:
    """Tokens; arguments as in :mod:`.reference`."""
    return native.run(cpu_launcher("small_teacher"), *arguments)
