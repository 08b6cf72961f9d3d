"""The tiny VAR models of the fixtures, built as the loader builds released files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity.synth import synth_tensors
from torch import Tensor

from dd2_fast.checkpoints.registry import class_of
from dd2_fast.models.released import Format
from dd2_fast.models.var import DD1VARStudent, VARTeacher, VARTokenizer
from dd2_fast.models.var.released import FORMATS

FOLDER = Path(__file__).parent
PATCH_NUMS = [1, 2, 3, 4]


def fixture(name: str) -> dict[str, Any]:
    """Config and manifests of a fixture."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def arrays(name: str) -> dict[str, Tensor]:
    """The arrays of a fixture."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def match(tensors: Mapping[str, Tensor]) -> Format:
    """The one format of the family that these tensors are of."""
    (found,) = [one for one in FORMATS if one.matches(tensors)]
    return found


def build(tensors: Mapping[str, Tensor], **config: Any) -> Any:
    """The model of a released state dict, evaluating and frozen."""
    one = match(tensors)
    kept = {name: value for name, value in tensors.items() if not one.ignored(name)}
    model = class_of(one.kind)(**one.configure(kept, config))
    model.load_state_dict(kept)
    return model.eval().requires_grad_(False)


def tokenizer(name: str = "var_tiny") -> VARTokenizer:
    return build(synth_tensors(fixture(name)["vqvae"]), patch_nums=PATCH_NUMS)


def teacher() -> VARTeacher:
    model = build(synth_tensors(fixture("var_tiny")["var"]), patch_nums=PATCH_NUMS)
    model.tokenizer = tokenizer()
    return model


def student(**config: Any) -> DD1VARStudent:
    config = {"patch_nums": PATCH_NUMS, "split": 2, **config}
    model = build(synth_tensors(fixture("dd1_var_tiny")["dd"]), **config)
    model.tokenizer = tokenizer("dd1_var_tiny")
    return model


def relative_rms(got: Tensor, expected: Tensor) -> float:
    """RMS of the difference over the RMS of what was expected."""
    assert got.shape == expected.shape
    return float((got - expected).double().norm() / expected.double().norm())
