"""The draw by the C++ kernel of ``csrc/cpu/sample_code.cpp``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..native import cpu_launcher
from . import native


def sample_code(*arguments: Any) -> Tensor:
    """Codes; arguments as in :mod:`.reference`."""
    return native.run(cpu_launcher("sample_code"), *arguments)
