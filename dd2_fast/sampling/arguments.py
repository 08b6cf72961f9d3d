"""Checks of the sampler's arguments."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.sampling import check_seed


def check_labels(labels: int | Sequence[int] | Tensor | np.ndarray, num_classes: int) -> Tensor:
    """Return labels as int64 [B], on the CPU unless they are a tensor elsewhere."""
    if isinstance(labels, np.ndarray | np.integer):
        if labels.dtype.kind not in "iu" or labels.ndim > 1:
            raise TypeError(
                "labels: expected an array of integers of shape [B], "
                f"got {labels.dtype} of shape {list(labels.shape)}"
            )
        labels = labels.reshape(-1).tolist()
    if isinstance(labels, Tensor):
        fractional = labels.is_floating_point() or labels.is_complex()
        if fractional or labels.dtype == torch.bool or labels.ndim > 1 or labels.is_meta:
            raise TypeError(
                "labels: expected an int64 tensor of shape [B], "
                f"got {labels.dtype} of shape {list(labels.shape)} on {labels.device}"
            )
        y = labels.reshape(-1).to(torch.int64)
        if len(y):
            least, most = map(int, y.aminmax())
            _check_range(least, most, num_classes)
        return y
    if isinstance(labels, int) and not isinstance(labels, bool):
        labels = [labels]
    elif not isinstance(labels, Sequence) or isinstance(labels, str):
        raise TypeError(
            "labels: expected an int, a list of ints, a tensor or an array of integers, "
            f"got {type(labels).__name__}"
        )
    values = [integer(v, "labels") for v in labels]
    if values:
        _check_range(min(values), max(values), num_classes)  # 64 bits may be too few for them
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def _check_range(least: int, most: int, num_classes: int) -> None:
    if least < 0 or most >= num_classes:
        raise ValueError(
            f"labels: expected values in 0..{num_classes - 1}, got {least if least < 0 else most}"
        )


def check_indices(indices: Sequence[int] | Tensor | None, start: int, count: int) -> Tensor:
    """Return the image indices int64 [count]."""
    if start < 0:
        raise ValueError(f"start_index: expected at least 0, got {start}")
    if start + count > 1 << 63:
        raise ValueError(
            f"start_index: expected at most {(1 << 63) - count} for {count} images, whose indices "
            f"are of 64 bits, got {start}"
        )
    if indices is None:
        index = torch.arange(count, device="cpu")
        return index + start if start else index
    if start:
        raise ValueError("indices: expected either indices or start_index, got both")
    if isinstance(indices, Tensor) and indices.dtype != torch.int64:
        raise TypeError(f"indices: expected an int64 tensor, got {indices.dtype}")
    index = (
        indices
        if isinstance(indices, Tensor)
        else torch.tensor([integer(v, "indices") for v in indices], dtype=torch.int64, device="cpu")
    )
    if tuple(index.shape) != (count,):
        raise ValueError(f"indices: expected {count}, one a label, got {list(index.shape)}")
    if count and int(index.min()) < 0:
        raise ValueError(f"indices: expected at least 0, got {int(index.min())}")
    return index


def integer(value: Any, name: str) -> int:
    """Return an integer argument as int; TypeError for bool, float and everything else."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name}: expected an integer, got {value!r} of type {type(value).__name__}"
        ) from None


def image_seed(seed: Any) -> int:
    """Return the seed of a job as int; TypeError or ValueError unless it is one of 64 bits."""
    seed = integer(seed, "seed")
    check_seed(seed)
    return seed


def check_device(device: torch.device | str | None) -> None:
    """Raise RuntimeError, with the reason, for a device that torch cannot use here."""
    if device is None:
        return
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise RuntimeError(f"device: expected a torch device, got {device!r}: {error}") from error
    if kind == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        reason = "torch sees no GPU" if built else "this build of torch is for the CPU alone"
        raise RuntimeError(f"device: expected one that is there, got {str(device)!r}: {reason}")


def check_dtype(dtype: Any) -> None:
    """Raise TypeError unless dtype is one that networks compute in, or None."""
    if dtype is None:
        return
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(
            f"dtype: expected a floating torch.dtype such as torch.bfloat16, got {dtype!r}"
        )
