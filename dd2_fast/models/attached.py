"""What goes with a network without being part of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from .pretrained import Pretrained

_NAMES = ("tokenizer", "teacher")


class Attached(Pretrained, nn.Module):
    """A network whose ``tokenizer`` and ``teacher`` are attached, not submodules: nothing moves,
    saves or trains them with it."""

    tokenizer: Any = None
    teacher: Any = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _NAMES:
            super().__setattr__(name, value)
            return
        if name == "tokenizer" and value is not None:
            value = self._fitting(value)
        object.__setattr__(self, name, value)

    def _fitting(self, tokenizer: Any) -> Any:
        """What to attach for ``tokenizer``; TypeError or ValueError if it does not fit."""
        return tokenizer
