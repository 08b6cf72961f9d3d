"""The recipe for images learns: on coloured shapes made here, and on Fashion-MNIST."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from training.image_files import shapes, write_npz

import dd2_fast
from dd2_fast.cli import main

FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian: dataset-fashion-mnist


def train(name: str, data: Path, out: Path, settings: dict[str, object]) -> dict:
    sets = [arg for k, v in settings.items() for arg in ("--set", f"{k}={v}")]
    assert main(["train", name, "--data", str(data), "--out", str(out), "--quiet", *sets]) == 0
    return json.loads((out / "run.json").read_text())


LLAMAGEN = {
    **{"tokenizer.latents": 8, "pairs.count": 200, "pairs.batch": 100, "logits.pair_steps": 20},
    **{"logits.pair_rate": 2e-3, "logits.steps": 30, "logits.rate": 1e-3, "logits.batch": 16},
    **{"logits.ema_decay": 0.9, "evaluation.teacher_steps": "5,9", "evaluation.jacobi": "2,6"},
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "own"), [("images_var", {}), ("images_llamagen", LLAMAGEN)])
def test_coloured_shapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, own: dict[str, object]
) -> None:
    """Every stage gets nearer to its goal than what knows nothing of it."""
    data = write_npz(tmp_path / "set.npz", *shapes(600))
    settings = {
        **{"data.size": 16, "data.flip": "false", "tokenizer.patch_nums": "1,2,4"},
        **{"tokenizer.vocabulary": 32, "tokenizer.dimension": 4, "tokenizer.channels": 8},
        **{"tokenizer.groups": 4, "tokenizer.blocks": 1, "tokenizer.continuous_steps": 50},
        **{"tokenizer.steps": 100, "tokenizer.batch": 16, "tokenizer.rate": 4e-3},
        **{"tokenizer.start_images": 200, "classifier.width": 8, "classifier.features": 8},
        **{"classifier.steps": 50, "classifier.batch": 32, "classifier.rate": 4e-3},
        **{"teacher.width": 32, "teacher.layers": 2, "teacher.heads": 2, "teacher.steps": 80},
        **{"teacher.batch": 32, "teacher.rate": 5e-3, "teacher.ema_decay": 0.95},
        **{"teacher.warmup": 10, "network.head_width": 16, "network.head_depth": 1},
        **{"stage1.head_steps": 5, "stage1.steps": 25, "stage1.batch": 16, "stage1.rate": 3e-3},
        **{"distill.guidance_start": 5, "distill.steps": 30, "distill.batch": 16},
        **{"distill.guidance_updates": 1, "distill.warmup": 5, "distill.ema_decay": 0.9},
        **{"evaluation.samples": 150, "evaluation.teacher_steps": "2,3", "evaluation.grid": 12},
    }
    told = train(name, data, tmp_path / "run", {**settings, **own})["evaluation"]
    rows = told["rows"]
    images, _ = shapes(600)
    variance = float(((images / 255 - (images / 255).mean(0)) ** 2).mean())
    assert told["reconstruction_mse"] < 0.65 * variance
    assert told["codes_used"] > 0.5
    assert told["held_out_nll"] < math.log(32) - 0.5
    assert rows["real"]["accuracy"] > 0.9
    assert rows["teacher"]["nll"] < rows["set_prediction"]["nll"]  # it knows what belongs together
    after = ("jacobi_2", "jacobi_6") if own else ("2", "3")
    told_of = [rows[one]["nll"] for one in ("one_step", *(f"one_step_{k}" for k in after))]
    assert told_of == sorted(told_of, reverse=True)
    printed = capsys.readouterr().out
    assert ("one step + 2 passes" if own else "one step + 1 teacher's") in printed
    assert "set prediction" in printed


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion(tmp_path: Path) -> None:
    """Real images from IDX files, in a minute."""
    settings = {
        **{"tokenizer.continuous_steps": 50, "tokenizer.steps": 100, "tokenizer.batch": 16},
        **{"classifier.steps": 60, "classifier.batch": 32, "teacher.steps": 60},
        **{"teacher.batch": 16, "teacher.ema_decay": 0.9, "stage1.head_steps": 5},
        **{"stage1.steps": 15, "stage1.batch": 16, "distill.guidance_start": 5},
        **{"distill.steps": 15, "distill.batch": 16, "evaluation.samples": 100},
        "evaluation.teacher_steps": "2",
    }
    report = train("fashion", FASHION, tmp_path / "run", settings)
    assert (report["data"]["train"], report["data"]["held_out"]) == (60000, 10000)
    told = report["evaluation"]
    assert told["reconstruction_mse"] < 0.03  # of 0.07 that an average image leaves
    assert told["rows"]["real"]["accuracy"] > 0.5
    assert told["held_out_nll"] < math.log(256) - 0.5
    images = dd2_fast.sample(tmp_path / "run", list(range(10)))
    assert images.shape == (10, 1, 28, 28)
