"""The evaluation table on the bundled digits model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg

import dd2_fast
from dd2_fast.checkpoints import load_bundle
from dd2_fast.metrics import evaluate
from dd2_fast.training.samples.digits import load_digits

DIGITS = Path(dd2_fast.__file__).parent / "assets" / "digits"


@pytest.fixture(scope="module")
def bundle():
    return load_bundle(DIGITS)


@pytest.fixture(scope="module")
def rows(bundle):
    return evaluate(bundle, load_digits(), num_samples=1000, seed=5)


def test_reconstruction_row_agrees_with_scipy(bundle, rows) -> None:
    data = load_digits()
    tokens = bundle.tokenizer.encode(data.test_images)
    images = bundle.tokenizer.decode(bundle.tokenizer.embed(tokens))
    x = bundle.classifier.features(images).double().numpy()
    y = bundle.classifier.features(data.test_images).double().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = x.mean(0) - y.mean(0)
    expected = shift @ shift + np.trace(cov_x + cov_y - 2 * linalg.sqrtm(cov_x @ cov_y).real)
    assert rows["reconstruction"]["fd"] == pytest.approx(expected, rel=1e-4)
    accuracy = (bundle.classifier(images).argmax(1) == data.test_labels).double().mean()
    assert rows["reconstruction"]["accuracy"] == pytest.approx(float(accuracy))


def test_rows_are_in_the_order_that_the_method_promises(rows) -> None:
    assert list(rows) == ["reconstruction", "teacher", "one_step", "set_prediction", "stage1"]
    assert rows["teacher"]["nll"] < rows["one_step"]["nll"] < rows["set_prediction"]["nll"]
    for better, worse in (("one_step", "set_prediction"), ("set_prediction", "stage1")):
        assert rows[better]["fd"] < rows[worse]["fd"]
        assert rows[better]["fd_class"] < rows[worse]["fd_class"]


def test_same_seed_gives_the_same_table_and_leaves_no_trace(bundle) -> None:
    data = load_digits()
    bundle.generator.train()
    state = torch.get_rng_state()
    first = evaluate(bundle, data, num_samples=100, seed=1)
    assert bundle.generator.training and not bundle.teacher.training
    assert torch.equal(torch.get_rng_state(), state)
    bundle.generator.eval()
    assert first == evaluate(bundle, data, num_samples=100, seed=1)
    assert first["one_step"] != evaluate(bundle, data, num_samples=100, seed=2)["one_step"]


def test_too_few_samples_are_refused(bundle) -> None:
    with pytest.raises(ValueError, match="num_samples: expected at least 20, got 3"):
        evaluate(bundle, load_digits(), num_samples=3)
