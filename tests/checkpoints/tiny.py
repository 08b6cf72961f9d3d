"""A made-up released family: a teacher, its tokenizer, and their formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dd2_fast.checkpoints import formats, registry
from dd2_fast.models.released import Format


class TinyTeacher(nn.Module):
    """Two parameters a layer, a buffer that follows from the width, and a tokenizer to attach."""

    tokenizer: Any = None
    mask: Tensor

    def __init__(self, *, width: int, classes: int, heads: int = 1) -> None:
        super().__init__()
        self.config = {"width": width, "classes": classes, "heads": heads}
        if width % heads:
            raise ValueError(f"heads: expected a divisor of {width}, got {heads}")
        self.table = nn.Embedding(classes, width)
        self.out = nn.Linear(width, width)
        self.register_buffer("mask", torch.arange(width), persistent=False)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "tokenizer":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


class TinyTokenizer(nn.Module):
    """A codebook and nothing else."""

    def __init__(self, *, codes: int, dimension: int) -> None:
        super().__init__()
        self.config = {"codes": codes, "dimension": dimension}
        self.codebook = nn.Parameter(torch.zeros(codes, dimension))

    encode = embed = decode = nn.Module.forward


def configure_teacher(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    unknown = set(config) - {"heads"}
    if unknown:
        raise TypeError(f"config: expected heads, got {', '.join(sorted(unknown))}")
    if config.get("heads", 1) < 1:
        raise ValueError(f"heads: expected at least 1, got {config['heads']}")
    classes, width = tensors["table.weight"].shape
    return {"width": width, "classes": classes, **config}


def configure_tokenizer(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    codes, dimension = tensors["codebook"].shape
    return {"codes": codes, "dimension": dimension, **config}


FORMATS = (
    Format("tiny_teacher", lambda t: "table.weight" in t, configure_teacher, "mask".__eq__),
    Format("tiny_tokenizer", lambda t: "codebook" in t, configure_tokenizer, lambda name: False),
)
KINDS = {"tiny_teacher": TinyTeacher, "tiny_tokenizer": TinyTokenizer}


def install(patch: pytest.MonkeyPatch) -> None:
    """Make the loader know the family, and only it."""
    patch.setattr(formats, "FORMATS", FORMATS)
    for kind, model in KINDS.items():
        patch.setitem(registry.KINDS, kind, f"{__name__}:{model.__name__}")


def teacher_tensors(width: int = 4, classes: int = 3, shift: float = 0.0) -> dict[str, Tensor]:
    """The state dict of a teacher; ``shift`` tells two of them apart."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"table.weight": (classes, width), "out.weight": (width, width), "out.bias": (width,)}
    return {k: torch.randn(s, generator=generator) + shift for k, s in shapes.items()}


def tokenizer_tensors() -> dict[str, Tensor]:
    """The state dict of a tokenizer."""
    return {"codebook": torch.arange(10.0).reshape(5, 2)}
