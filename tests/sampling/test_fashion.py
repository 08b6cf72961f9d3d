"""The bundled model of Fashion-MNIST: VAR's family, grey, one step and the teacher's after it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import dd2_fast
from dd2_fast import checkpoints
from dd2_fast.cli import main
from dd2_fast.metrics.image_classifier import describe
from dd2_fast.sampling import Sampler, resolve_path

LABELS = [label for label in range(10) for _ in range(6)]
MOST = 6_000_000  # bytes in the wheel


@pytest.fixture(scope="module")
def bundle():
    return checkpoints.load_bundle(resolve_path("fashion"))


def test_it_is_small_and_computes_in_float32(bundle) -> None:
    assert sum(path.stat().st_size for path in resolve_path("fashion").iterdir()) <= MOST
    for part in (bundle.generator, bundle.teacher, bundle.tokenizer, bundle.classifier):
        assert {p.dtype for p in part.parameters()} == {torch.float32}
    commit = bundle.settings["provenance"]["commit"]
    assert len(commit) == 40 and not commit.endswith("-dirty")


@pytest.mark.parametrize("teacher_steps", [0, 2, 4])
def test_images_are_of_their_class(bundle, teacher_steps: int) -> None:
    """By the eyes of the classifier that was trained on real ones, much above one in ten."""
    images = dd2_fast.sample("fashion", LABELS, seed=3, teacher_steps=teacher_steps)
    assert images.shape == (60, 1, 28, 28) and images.isfinite().all()
    _, predicted = describe(bundle.classifier, images)
    assert float((predicted == torch.tensor(LABELS)).double().mean()) > 0.6
    spread = torch.stack([part.std(0).mean() for part in images.split(6)])
    assert (spread > 0.01).all()  # not one picture a class


def test_outputs_are_grey(bundle) -> None:
    sampler = Sampler(bundle)
    arrays = sampler([9, 1], output="np")
    assert arrays.shape == (2, 28, 28, 1) and arrays.dtype == np.uint8
    assert [picture.mode for picture in sampler([9, 1], output="pil")] == ["L", "L"]
    assert np.array_equal(sampler([1], output="np", start_index=1)[0], arrays[1])


@pytest.mark.slow
def test_it_is_evaluated_in_float32(tmp_path: Path) -> None:
    """By the command, on images of another kind in its folder's place."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(60) % 10)
    command = ["evaluate", "fashion", "--data", str(tmp_path / "images.npz"), "--out"]
    small = ["--set", "evaluation.samples=20", "--set", "data.held_out=0.5"]
    assert main([*command, str(tmp_path / "out"), *small]) == 0
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    # The classifier and the distances are of clothes, so noise is far from all that is made.
    assert told["rows"]["one_step"]["accuracy"] > 0.5
    assert told["rows"]["one_step"]["fd"] > 2 * told["rows"]["one_step"]["to_teacher"]


def test_the_package_is_not_written_to(capsys) -> None:
    assert main(["evaluate", "fashion", "--data", "x"]) == 2
    assert "--out: expected a folder for the bundled 'fashion'" in capsys.readouterr().err
