"""The compiled extension ``dd2_fast._C``, imported on first use."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType


@functools.cache
def load() -> tuple[ModuleType | None, str | None]:
    """The extension and None, or None and the reason why it cannot be used."""
    try:
        return importlib.import_module("dd2_fast._C"), None
    except ModuleNotFoundError:
        return None, "the compiled extension dd2_fast._C was not built (no C++ compiler at install)"
    except ImportError as error:
        return None, f"the compiled extension dd2_fast._C does not load: {error}"


def native() -> ModuleType:
    """The extension, for backends that the registry has already found usable."""
    module, reason = load()
    if module is None:
        raise RuntimeError(reason)
    return module
