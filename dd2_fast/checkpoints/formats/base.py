"""What the loader needs to know of a released kind of file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Format:
    """A released kind of file, told by the names of its tensors.

    Attributes:
        kind: the model's name in the registry.
        matches: whether a state dict is of this format, by names and shapes alone.
        configure: the constructor's arguments from the shapes and the caller's own ``config``;
            ValueError or TypeError names what is unknown or inconsistent.
        ignored: whether a name is a buffer that follows from the configuration.
        names: of tensors that every such file has, to say what a file that matches nothing lacks.
    """

    kind: str
    matches: Callable[[Mapping[str, Tensor]], bool]
    configure: Callable[[Mapping[str, Tensor], Mapping[str, Any]], dict[str, Any]]
    ignored: Callable[[str], bool]
    names: tuple[str, ...] = ()
