"""Running models in evaluation mode without leaving a trace on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def submodules(*models: Any) -> list[nn.Module]:
    """Return every module inside those of models that are modules, themselves included."""
    roots = [model for model in models if isinstance(model, nn.Module)]
    return [module for root in roots for module in root.modules()]


@contextmanager
def evaluation_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put modules, as `submodules` lists them, in evaluation mode; restore their flags after."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
