"""Jobs go on with the same weights, wherever these lie, and with no others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dd2_fast import checkpoints
from dd2_fast.cli import main
from dd2_fast.sampling import NpzFile, PngFolder
from dd2_fast.sampling.sources import bundled_path

PARTS = ("generator", "tokenizer", "teacher")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(bundled_path("digits"), tmp_path / "model")
    return tmp_path / "model"


def change(path: Path, by: Callable[[torch.nn.Module], object]) -> None:
    model = checkpoints.load(path)
    by(model)
    checkpoints.save(path, model)


def scale(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        parameter.mul_(1 + 2**-20)


def command(model: Path, out: Path, num: int = 6, *more: str) -> list[str]:
    start = ["sample", "--model", str(model), "--num", str(num), "--batch-size", "2"]
    return [*start, "--out", str(out), "--quiet", *more]


def images(out: Path) -> list[np.ndarray]:
    if out.suffix == ".npz":
        with np.load(out) as archive:
            return list(archive["arr_0"])
    return [np.asarray(Image.open(path)) for path in sorted(out.glob("*.png"))]


@pytest.mark.parametrize("name", ["images", "a.npz"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_job_of_moved_and_of_other_weights(
    tmp_path: Path, model: Path, capsys, monkeypatch, name: str, finished: bool
) -> None:
    out, whole = tmp_path / name, tmp_path / f"whole_{name}"
    assert main(command(model, whole)) == 0
    with monkeypatch.context() as patch:
        if not finished:
            patch.setattr(PngFolder if name == "images" else NpzFile, "finish", lambda *_: None)
        assert main(command(model, out, 4 if name == "images" else 6)) == 0
    shutil.copytree(model, tmp_path / "moved")
    change(model / "generator.safetensors", scale)
    capsys.readouterr()
    assert main(command(model, out)) == 2
    assert "another job, with other " in (error := capsys.readouterr().err)
    assert "weights (there " in error and error.count("\n") == 1
    assert main(command(tmp_path / "moved", out)) == 0
    for got, expected in zip(images(out), images(whole), strict=True):
        assert np.abs(got.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("steps", [1, 3])
def test_every_network_that_draws_counts(
    tmp_path: Path, model: Path, capsys, part: str, steps: int
) -> None:
    out = tmp_path / "images"
    argv = command(model, out, 2, "--teacher-steps", str(steps))
    assert main(argv) == 0
    change(model / f"{part}.safetensors", scale)
    counts = part != "teacher" or steps > 1
    assert main(argv) == (2 if counts else 0)
    assert ("with other weights" in capsys.readouterr().err) == counts


def test_a_job_of_an_earlier_version_is_not_taken_for_this_one(
    tmp_path: Path, model: Path, capsys
) -> None:
    out = tmp_path / "images"
    assert main(command(model, out)) == 0
    record = json.loads((out / ".job.json").read_text())
    del record["weights"]
    (out / ".job.json").write_text(json.dumps({**record, "model": str(model)}))
    assert main(command(model, out)) == 2
    assert "other model (there " in (error := capsys.readouterr().err) and "weights" in error


def test_shards_of_other_networks(tmp_path: Path, model: Path, capsys) -> None:
    out = tmp_path / "shards"

    def run(source: Path) -> int:
        return main(["make-data", str(source), "--num", "6", "--out", str(out), "--quiet"])

    assert run(model) == 0
    shutil.copytree(model, tmp_path / "moved")
    manifest = json.loads((out / "manifest.json").read_text())
    for name, value in (("teacher_config", {"heads": 1}), ("tokenizer_config", {})):
        other = {**manifest, "settings": {**manifest["settings"], name: value}}
        (out / "manifest.json").write_text(json.dumps(other))
        assert run(model) == 2 and name in capsys.readouterr().err
        del other["settings"][name]  # of an earlier version
        (out / "manifest.json").write_text(json.dumps(other))
        assert run(model) == 0
    change(model / "teacher.safetensors", scale)
    assert run(model) == 2 and "teacher_sha256" in capsys.readouterr().err
    assert run(tmp_path / "moved") == 0
