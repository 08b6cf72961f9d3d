"""The compiled extension ``dd2_fast._C``, imported on first use."""

from __future__ import annotations

import functools
import importlib
import json
import os
from pathlib import Path
from types import ModuleType

from . import structs

_INSTRUCTION_SETS = ("", "v2", "v3", "v4")  # of csrc/cpu/dispatch.cpp


@functools.cache
def load() -> tuple[ModuleType | None, str | None]:
    """The extension and None, or None and the reason why it cannot be used.

    Raises:
        ValueError: DD2_FAST_CPU_ISA, which the extension reads, names no instruction set.
    """
    instruction_set = os.environ.get("DD2_FAST_CPU_ISA", "")
    if instruction_set not in _INSTRUCTION_SETS:
        raise ValueError(
            f"DD2_FAST_CPU_ISA: expected 'v2', 'v3' or 'v4', or unset, got {instruction_set!r}"
        )
    try:
        module = importlib.import_module("dd2_fast._C")
    except ModuleNotFoundError:
        return None, f"the compiled extension dd2_fast._C was not built ({_why_missing()})"
    except ImportError as error:
        return None, f"the compiled extension dd2_fast._C does not load: {error}"
    differing = structs.differing(getattr(module, "layouts", {"layouts": None}))
    if differing is not None:
        return None, (
            f"the compiled extension {module.__file__} was built from other sources than these "
            f"({differing} differs): install or build it again"
        )
    return module, None


def _why_missing() -> str:
    missing = build_record().get("missing")
    if missing:
        return missing
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "setup.py").exists():
        return (
            "dd2_fast is imported from a source checkout: leave that folder to use the installed "
            "package, or build here with 'python setup.py build_ext --inplace'"
        )
    return "it was installed without one"


@functools.cache
def build_record() -> dict[str, str]:
    """What ``setup.py`` built "with", "for" which instruction sets, and what it saw of "cuda"; or
    in "missing" why there is no extension. Empty where nothing was built here."""
    try:
        return json.loads((Path(__file__).resolve().parents[1] / "build.json").read_text())
    except (OSError, ValueError):
        return {}


def native() -> ModuleType:
    """The extension, for backends that the registry has already found usable."""
    module, reason = load()
    if module is None:
        raise RuntimeError(reason)
    return module
