"""dd2_fast: one-step image autoregressive models by Distilled Decoding 2, fast.

    dd2_fast.sample("digits", labels=[3, 1, 4])     images of a bundled, saved or loaded model
    dd2_fast.Sampler(model)                         the same, holding the model between calls
    dd2_fast.export(model, "model.onnx")            one file for programs without this package
    dd2_fast.checkpoints.load(source)               models from files
    dd2_fast.ops.conditional_score(...)             the fused operators

Submodules are imported on first use; API.md in this folder lists every public name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import checkpoints, losses, metrics, models, ops, sampling, training
    from .sampling import Sampler, export, sample

__version__ = "0.1.0"
__all__ = [
    "Sampler",
    "__version__",
    "checkpoints",
    "export",
    "losses",
    "metrics",
    "models",
    "ops",
    "sample",
    "sampling",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in ("Sampler", "export", "sample"):
        return getattr(importlib.import_module(".sampling", __name__), name)
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
