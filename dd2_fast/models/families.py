"""The list of families; kinds of file, formats, backbones and random networks follow from it."""

from __future__ import annotations

from typing import Any

from .causal import family as causal
from .family import Backbone, Family, Teacher
from .llamagen import family as llamagen
from .var import family as var

FAMILIES: dict[str, Family] = {
    one.name: one for one in (causal.FAMILY, var.FAMILY, llamagen.FAMILY)
}


def family_of(model: object) -> Family:
    """The family that a teacher, tokenizer or student is of.

    Raises:
        TypeError: none.
    """
    for family in FAMILIES.values():
        if isinstance(model, tuple(family.kinds.values())):
            return family
    raise TypeError(
        f"model: expected one of a family of {', '.join(FAMILIES)}, got {type(model).__name__}"
    )


def backbone_of(teacher: Teacher | Backbone) -> tuple[Family, Backbone]:
    """The family of a teacher, or of a backbone, and its backbone.

    Raises:
        TypeError: it belongs to no family.
    """
    backbone: Any = getattr(teacher, "backbone", teacher)
    for family in FAMILIES.values():
        if isinstance(backbone, family.backbone):
            return family, backbone
    raise TypeError(
        f"teacher: expected one with a backbone of {', '.join(FAMILIES)}, "
        f"got {type(teacher).__name__}"
    )
