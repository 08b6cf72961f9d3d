"""The flow ODE by the C++ kernel of ``csrc/cpu/flow_solve.cpp``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..native import cpu_launcher
from . import native


def flow_solve(*arguments: Any) -> Tensor:
    """Codes ``[R, M]``; arguments as in :mod:`.reference`."""
    return native.run(cpu_launcher("flow_solve"), *arguments)
