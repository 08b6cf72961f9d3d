"""The LlamaGen fixtures: their arrays, and the models whose outputs they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity.synth import synth_tensors
from torch import Tensor

from dd2_fast.models.llamagen import DD1LlamaGenStudent, LlamaGenTeacher, LlamaGenTokenizer

HERE = Path(__file__).parent
SIZES = dict(
    width=64, layers=2, heads=2, hidden=256, num_classes=10, grid=4, vocabulary=64, dimension=8
)


def settings(name: str) -> dict[str, Any]:
    """Config and manifests of a fixture."""
    return json.loads((HERE / f"{name}.json").read_text())


def arrays(name: str) -> dict[str, Tensor]:
    """The arrays of a fixture."""
    with np.load(HERE / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def weights(name: str, part: str) -> dict[str, Tensor]:
    """The state dict of one model of a fixture."""
    return synth_tensors(settings(name)[part], settings(name)["config"]["seed"])


def manifest(name: str) -> dict[str, dict[str, list[int]]]:
    """Names and shapes of a released file: ``parameters`` and ``buffers``."""
    return json.loads((HERE / "manifests" / f"{name}.json").read_text())


def manifest_names() -> list[str]:
    return sorted(path.stem for path in (HERE / "manifests").glob("*llamagen*.json"))


def make_tokenizer() -> LlamaGenTokenizer:
    tokenizer = LlamaGenTokenizer(
        channels=32, multiples=(1, 2, 2), latents=32, vocabulary=64, dimension=8
    )
    tokenizer.load_state_dict(weights("llamagen_tiny", "vq"))
    return tokenizer.eval()


def make_teacher(tokenizer: LlamaGenTokenizer | None = None) -> LlamaGenTeacher:
    teacher = LlamaGenTeacher(**SIZES)
    teacher.load_state_dict(weights("llamagen_tiny", "gpt"))
    teacher.tokenizer = make_tokenizer() if tokenizer is None else tokenizer
    return teacher.eval()


def make_student(codebook: bool = True) -> DD1LlamaGenStudent:
    codes = arrays("dd1_llamagen_tiny")["codebook"] if codebook else None
    student = DD1LlamaGenStudent(**SIZES, split=6, codebook=codes)
    student.load_state_dict(weights("dd1_llamagen_tiny", "dd"))
    return student.eval()


def relative(got: Tensor, want: Tensor) -> float:
    """Root mean square error over the root mean square of ``want``."""
    assert got.shape == want.shape
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).norm() / want.norm())
