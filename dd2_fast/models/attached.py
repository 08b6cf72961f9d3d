"""What goes with a network without being part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from .pretrained import Pretrained

if TYPE_CHECKING:
    from typing_extensions import Self

_NAMES = ("tokenizer", "teacher")


class Preparable(nn.Module):
    """A network that :func:`.prepared.prepare` is asked for by a method."""

    def prepare(self) -> Self:
        """This network for inference: the same results, with constants worked out once. Ask again
        after weights have changed; see :func:`dd2_fast.models.prepare`."""
        from .prepared import prepare

        return prepare(self)


class Attached(Pretrained, Preparable):
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
