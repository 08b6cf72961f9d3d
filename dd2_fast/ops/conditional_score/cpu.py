"""The conditional score by the C++ kernel of ``csrc/cpu/conditional_score.cpp``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import extension
from . import native


def _launch(params: Any) -> None:
    extension.native().cpu_conditional_score(params, torch.get_num_threads())


def conditional_x0(*arguments: Any) -> Tensor:
    """Posterior mean; arguments as in :mod:`.reference`."""
    return native.run(_launch, None, *arguments)


def conditional_x0_vjp(grad: Tensor, *arguments: Any) -> Tensor:
    """``J grad``; arguments as in :mod:`.reference`."""
    return native.run(_launch, grad, *arguments)
