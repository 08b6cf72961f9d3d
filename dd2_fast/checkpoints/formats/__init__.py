"""The released kinds of file, one module a family, and kinds that are known and not supported."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from . import llamagen, var
from .base import Format, Unsupported


def _is_adapter(tensors: Mapping[str, Tensor]) -> bool:
    return any("lora_" in name.lower() or "lora." in name.lower() for name in tensors)


FORMATS: tuple[Format, ...] = (*var.FORMATS, *llamagen.FORMATS)
UNSUPPORTED: tuple[Unsupported, ...] = (
    *llamagen.UNSUPPORTED,
    Unsupported(_is_adapter, "low-rank adapters (LoRA); merge them into their model first"),
)

__all__ = ["FORMATS", "UNSUPPORTED", "Format", "Unsupported"]
