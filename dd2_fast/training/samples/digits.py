"""The handwritten digits that scikit-learn bundles, with a fixed split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

HELD_OUT = 500


@dataclass(frozen=True)
class DigitsData:
    """8x8 images ``[N, 3, 8, 8]`` (float32 in [0, 1]) and labels ``[N]`` (int64, 0 to 9)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits() -> DigitsData:
    """The 1797 digits, 500 of them held out; the stratified split is always the same.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn, which is not installed: "
            "pip install 'dd2-fast[demo]'"
        ) from error
    digits = datasets.load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 16
    labels = torch.tensor(digits.target, dtype=torch.int64)
    train, test = train_test_split(
        range(len(labels)), test_size=HELD_OUT, random_state=0, stratify=digits.target
    )
    return DigitsData(images[train], labels[train], images[test], labels[test])
