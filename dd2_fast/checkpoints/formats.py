"""The released kinds of file of every family, and kinds that are known and not supported."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..models.families import FAMILIES
from ..models.released import Format, Unsupported


def _is_adapter(tensors: Mapping[str, Tensor]) -> bool:
    return any("lora_" in name.lower() or "lora." in name.lower() for name in tensors)


FORMATS: tuple[Format, ...] = tuple(one for f in FAMILIES.values() for one in f.formats)
UNSUPPORTED: tuple[Unsupported, ...] = (
    *(one for f in FAMILIES.values() for one in f.unsupported),
    Unsupported(_is_adapter, "low-rank adapters (LoRA); merge them into their model first"),
)
