"""The small student by the C++ kernel of ``csrc/cpu/small_student.cpp``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..native import Launch, cpu_launcher
from . import native


def launcher(device: torch.device) -> Launch:
    """The kernel on torch's number of threads."""
    return cpu_launcher("small_student")


def small_student(noise: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Codes and images; arguments as in :mod:`.reference`."""
    return native.run(launcher(noise.device), noise, *arguments)
