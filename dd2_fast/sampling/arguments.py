"""Checks of the sampler's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..condition import integer
from ..models import LogitStudent, fp8, int8
from ..models.rounded import RoundedLinear
from ..models.sampling import check_seed

# What large layers can be rounded to, and of what.
ROUNDED = {
    "int8": "float32 networks on a CPU",
    "fp8": "networks on a GPU of compute capability 8.9 or more",
}


def check_indices(
    indices: Sequence[int] | Tensor | None, start: int, count: int, *, apart: bool = False
) -> Tensor:
    """Return the image indices int64 [count]: those given, or from `start` on; where the images are
    jobs `apart`, each of its own seed, `start` of them all."""
    if start < 0:
        raise ValueError(f"start_index: expected at least 0, got {start}")
    if start + (1 if apart else count) > 1 << 63:
        raise ValueError(
            f"start_index: expected at most {(1 << 63) - count} for {count} images, whose indices "
            f"are of 64 bits, got {start}"
        )
    if indices is None:
        if apart:
            return torch.full((count,), start, dtype=torch.int64, device="cpu")
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


def image_seed(seed: Any) -> int:
    """Return the seed of a job as int; TypeError or ValueError unless it is one of 64 bits."""
    number = integer(seed, "seed")
    check_seed(number)
    return number


def image_seeds(seed: Any, count: int) -> int | Tensor:
    """Return one seed as int, or one of each image as int64 [count] on the CPU; TypeError or
    ValueError for any other."""
    if isinstance(seed, Tensor | np.ndarray) and seed.ndim:
        seed = seed.tolist()
    if not isinstance(seed, Sequence) or isinstance(seed, str | bytes):
        return image_seed(seed)
    if len(seed) != count:
        raise ValueError(
            f"seed: expected one number, or {count}, one a label, got a list of {len(seed)}"
        )
    return torch.tensor([image_seed(v) for v in seed], dtype=torch.int64, device="cpu")


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
    if dtype is None or (isinstance(dtype, str) and dtype in ROUNDED):
        return
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(
            "dtype: expected a floating torch.dtype such as torch.bfloat16, or "
            f"{' or '.join(map(_quoted, ROUNDED))}, got {dtype!r}"
        )


def check_machine(dtype: str, device: torch.device) -> None:
    """Raise ValueError unless networks on a device can compute in a dtype of ROUNDED."""
    why = int8.missing() if dtype == "int8" else fp8.missing(device)
    if why is not None:
        raise _refused(dtype, why)


def check_rounded(dtype: str, generator: nn.Module, *prepared: nn.Module) -> None:
    """Raise ValueError unless networks were prepared to compute in a dtype of ROUNDED."""
    weight, why = next(generator.parameters()), None
    check_machine(dtype, weight.device)
    wrong_place = dtype == "int8" and weight.device.type != "cpu"
    if wrong_place or weight.dtype != (torch.float32 if dtype == "int8" else torch.bfloat16):
        why = f"the networks are {weight.dtype} on {weight.device}"
    elif isinstance(generator, LogitStudent):
        why = (
            "a LogitStudent's codes flip where its logits are rounded, which has not been measured"
        )
    elif not any(
        isinstance(m, RoundedLinear | int8.Int8Conv) for p in prepared for m in p.modules()
    ):
        why = (
            "no layer of these networks is large enough, or they are no released family's as built"
        )
    if why is not None:
        raise _refused(dtype, why)


def _refused(dtype: str, why: str) -> ValueError:
    return ValueError(f'dtype: expected {ROUNDED[dtype]} for "{dtype}", but {why}')


def _quoted(name: str) -> str:
    return f'"{name}"'
