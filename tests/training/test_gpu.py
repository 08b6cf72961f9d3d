"""Training on a GPU: every stage by the fused operators, bfloat16, a run that moves to a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training.test_distil import FAMILIES, config, weights
from training.test_faults import interrupt

from dd2_fast.training.recipes import distil

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_operators_train_as_the_reference(family: str) -> None:
    parts = list(distil.check_parity(config(family, device="cuda"), 3))
    assert {"stage1", "distill"} <= {part.stage for part in parts}
    for part in parts:
        # The convolutions of both runs are TF32's.
        assert part.loss < 1e-3 and part.gradient < 1e-2 and part.weights < 1e-3, part


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_trains(family: str, tmp_path: Path) -> None:
    settings = config(family, device="cuda", execution={"precision": "bfloat16"})
    out = distil.run(settings, tmp_path, progress=False)
    assert all(v.isfinite().all() and v.dtype == torch.float32 for v in weights(out).values())


def test_blocks_compile(tmp_path: Path) -> None:
    execution = {"precision": "bfloat16", "compile": True}
    settings = config("var", device="cuda", execution=execution, stage1={"steps": 2, "batch": 8})
    out = distil.run(settings, tmp_path, progress=False)
    assert all(v.isfinite().all() for v in weights(out).values())


@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_another_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: str, second: str
) -> None:
    interrupt(monkeypatch, tmp_path, 8, device=first)
    out = distil.run(config("var", device=second), tmp_path, progress=False)
    assert all(v.isfinite().all() for v in weights(out).values())
