"""The kinds of model our own files hold."""

from __future__ import annotations

import importlib

from torch import nn

KINDS = {
    "vq_tokenizer": "dd2_fast.models.tokenizer:VQTokenizer",
    "ar_teacher": "dd2_fast.models.teacher:ARTeacher",
    "table_teacher": "dd2_fast.models.table:TableTeacher",
    "dd2_generator": "dd2_fast.models.dd2:DD2Generator",
    "dd2_guidance": "dd2_fast.models.dd2:DD2Guidance",
    "var_teacher": "dd2_fast.models.var.teacher:VARTeacher",
    "var_tokenizer": "dd2_fast.models.var.tokenizer:VARTokenizer",
    "dd1_var_student": "dd2_fast.models.var.student:DD1VARStudent",
    "llamagen_teacher": "dd2_fast.models.llamagen.teacher:LlamaGenTeacher",
    "llamagen_tokenizer": "dd2_fast.models.llamagen.tokenizer:LlamaGenTokenizer",
    "dd1_llamagen_student": "dd2_fast.models.llamagen.student:DD1LlamaGenStudent",
    "digits_classifier": "dd2_fast.metrics.classifier:DigitsClassifier",
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
