"""The classifier that judges digits."""

from __future__ import annotations

import pytest
import torch

from dd2_fast.metrics import DigitsClassifier, train_classifier
from dd2_fast.training.samples.digits import load_digits


@pytest.mark.slow
def test_recognises_held_out_digits() -> None:
    data = load_digits()
    state = torch.get_rng_state()
    model = train_classifier(data.train_images, data.train_labels)
    accuracy = (model(data.test_images).argmax(1) == data.test_labels).double().mean()
    assert accuracy > 0.98
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert model.features(data.test_images).shape == (500, 32)


def test_training_is_deterministic_in_the_seed() -> None:
    images, labels = torch.rand(100, 3, 8, 8), torch.arange(100) % 10
    first, again, other = (
        train_classifier(images, labels, seed=seed, epochs=1) for seed in (1, 1, 2)
    )
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.classify.weight, other.classify.weight)


def test_config_builds_it_again() -> None:
    model = DigitsClassifier(in_channels=1, width=8, feature_dim=6)
    copy = DigitsClassifier(**model.config)
    copy.load_state_dict(model.state_dict())
    assert copy.features(torch.rand(2, 1, 8, 8)).shape == (2, 6)


def test_bad_inputs_are_named() -> None:
    with pytest.raises(ValueError, match=r"images: expected shape \[B, 3, 8, 8\], got \[2, 1, 8"):
        DigitsClassifier()(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="labels: expected one label an image.*3 images and 2"):
        train_classifier(torch.rand(3, 3, 8, 8), torch.zeros(2, dtype=torch.int64))
