"""The bundled model of Fashion-MNIST: VAR's family, grey, one step and the teacher's after it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dd2_fast
from dd2_fast import checkpoints
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
    assert images.shape == (60, 1, 16, 16) and images.isfinite().all()
    _, predicted = describe(bundle.classifier, images)
    assert float((predicted == torch.tensor(LABELS)).double().mean()) > 0.6
    spread = torch.stack([part.std(0).mean() for part in images.split(6)])
    assert (spread > 0.01).all()  # not one picture a class


def test_outputs_are_grey(bundle) -> None:
    sampler = Sampler(bundle)
    arrays = sampler([9, 1], output="np")
    assert arrays.shape == (2, 16, 16, 1) and arrays.dtype == np.uint8
    assert [picture.mode for picture in sampler([9, 1], output="pil")] == ["L", "L"]
    assert np.array_equal(sampler([1], output="np", start_index=1)[0], arrays[1])
