"""The kinds of model our own files hold."""

from __future__ import annotations

import importlib

from torch import nn

from ..models.families import FAMILIES

# By the names that files hold.
KINDS = {
    "dd2_generator": "dd2_fast.models.dd2:DD2Generator",
    "dd2_guidance": "dd2_fast.models.dd2:DD2Guidance",
    "logit_student": "dd2_fast.models.logit_student:LogitStudent",
    **{
        kind: f"{model.__module__}:{model.__qualname__}"
        for family in FAMILIES.values()
        for kind, model in family.kinds.items()
    },
    "digits_classifier": "dd2_fast.metrics.classifier:DigitsClassifier",
    "image_classifier": "dd2_fast.metrics.image_classifier:ImageClassifier",
}


def kind_of(model: nn.Module) -> str:
    """The kind of ``model``, or a TypeError that names the kinds there are."""
    name = f"{type(model).__module__}:{type(model).__qualname__}"
    for kind, target in KINDS.items():
        if target == name:
            return kind
    raise TypeError(f"model: expected one of {', '.join(KINDS)}, got {type(model).__qualname__}")


def class_of(kind: str) -> type[nn.Module]:
    """The class of ``kind``, imported on use."""
    module, name = KINDS[kind].split(":")
    return getattr(importlib.import_module(module), name)
