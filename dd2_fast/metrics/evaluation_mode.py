"""Running models in evaluation mode without leaving a trace on them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_lock = threading.Lock()
_users: Counter[nn.Module] = Counter()  # of modules that are to be in training mode again


def submodules(*models: Any) -> list[nn.Module]:
    """Return every module inside those of models that are modules, themselves included."""
    roots = [model for model in models if isinstance(model, nn.Module)]
    return [module for root in roots for module in root.modules()]


@contextmanager
def evaluation_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put modules, as `submodules` lists them, in evaluation mode; restore their flags after.

    Of several threads that share modules the last to leave restores them.
    """
    with _lock:
        training = [m for m in modules if m.training or (_users and m in _users)]
        _users.update(training)
        for module in training:
            module.training = False
    try:
        yield
    finally:
        with _lock:
            _users.subtract(training)
            for module in training:
                if not _users[module]:
                    del _users[module]
                    module.training = True
