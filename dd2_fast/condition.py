"""What an image is conditioned on: a class, or whatever a family of models needs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .ops.philox import row_uniform

# One row an image: a tensor [B, ...], or a tuple or a dict of such tensors.
Rows: TypeAlias = Any

RULES = ("balanced", "uniform")
_STREAM = 2  # the streams of sampling.noise are 0 and 1
_FEW = 64  # labels that a list tells the range of in less time than torch


class Condition:
    """How a family's conditions are checked and drawn, and which of them means none.

    A subclass says :meth:`check`, :meth:`null` and :meth:`draw`; the other methods follow from the
    rows being tensors, and serve a class, a text's embeddings or a pair of both alike.

    Attributes:
        name: of its tensors in files; "labels" for classes and "condition" for all others, which
            tells what they are.
    """

    name = "condition"

    def check(
        self, rows: Rows, count: int | None = None, device: torch.device | None = None
    ) -> None:
        """TypeError or ValueError unless a network can read these: ``count`` of them, on
        ``device`` (None: any)."""
        raise NotImplementedError

    def null(self, rows: Rows) -> Rows:
        """As many that mean no condition, which is what guidance leads away from."""
        raise NotImplementedError

    def draw(self, rule: str, seed: int, indices: Tensor) -> Rows:
        """The conditions of images ``indices [B]``, on their device: a function of (seed, index).

        Args:
            rule: ``"balanced"``, each in turn (the seed changes nothing), or ``"uniform"``.
        """
        raise NotImplementedError

    def random(self, count: int, rng: torch.Generator) -> Rows:
        """``count`` independent conditions, on the CPU."""
        seed = int(torch.randint(2**62, (), generator=rng))
        return self.draw("uniform", seed, torch.arange(count))

    def read(self, rows: Any) -> Rows:
        """What a caller of the sampler gives, as rows; TypeError or ValueError."""
        self.check(rows)
        return rows

    def about(self, rows: Rows, row: int) -> str:
        """What an error says of the condition of an image, or nothing."""
        return ""

    @property
    def settings(self) -> dict[str, Any]:
        """What samples on disk and the model they are for must agree in."""
        return {}

    def count(self, rows: Rows) -> int:
        """Of how many images these are."""
        return len(next(iter(self.tensors(rows).values())))

    def take(self, rows: Rows, chosen: Tensor | slice) -> Rows:
        """Those of some of the images."""
        return _each(lambda tensor: tensor[chosen], rows)

    def to(self, rows: Rows, device: torch.device | str | None) -> Rows:
        """The same on a device."""
        return _each(lambda tensor: tensor.to(device), rows)

    def cat(self, several: Sequence[Rows]) -> Rows:
        """One after the other."""
        return _each(lambda *tensors: torch.cat(tensors), *several)

    def split(self, rows: Rows, size: int) -> list[Rows]:
        """In parts of ``size`` images, the last of what is left."""
        starts = range(0, self.count(rows), size)
        return [self.take(rows, slice(start, start + size)) for start in starts]

    def with_null(self, rows: Rows) -> Rows:
        """Twice as many: these, then none."""
        return self.cat([rows, self.null(rows)])

    def drop(self, rows: Rows, dropped: Tensor) -> Rows:
        """None in the place of those that ``dropped`` (bool ``[B]``) names."""

        def choose(tensor: Tensor, null: Tensor) -> Tensor:
            return torch.where(dropped.view(-1, *[1] * (tensor.ndim - 1)), null, tensor)

        return _each(choose, rows, self.null(rows))

    def tensors(self, rows: Rows) -> dict[str, Tensor]:
        """The tensors by names for files and states; :meth:`of_tensors` takes them back."""
        if isinstance(rows, Tensor):
            return {self.name: rows}
        pairs = rows.items() if isinstance(rows, Mapping) else enumerate(rows)
        return {f"{self.name}_{key}": tensor for key, tensor in pairs}

    def of_tensors(self, tensors: Mapping[str, Tensor]) -> Rows:
        """The rows whose :meth:`tensors` these are, others among them; KeyError for none."""
        if self.name in tensors:
            return tensors[self.name]
        start = f"{self.name}_"
        parts = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        if not parts:
            raise KeyError(self.name)
        if all(key.isdecimal() for key in parts):
            return tuple(parts[str(i)] for i in range(len(parts)))
        return parts


def _each(function: Callable[..., Tensor], rows: Rows, *others: Rows) -> Rows:
    """``function`` of each tensor of ``rows`` and its counterparts."""
    if isinstance(rows, Tensor):
        return function(rows, *others)
    if isinstance(rows, Mapping):
        return {key: function(tensor, *(o[key] for o in others)) for key, tensor in rows.items()}
    return tuple(function(*tensors) for tensors in zip(rows, *others, strict=True))


@dataclass(frozen=True)
class ClassCondition(Condition):
    """Labels, int64 ``[B]``: classes ``0..num_classes-1``, and ``num_classes`` for none."""

    num_classes: int
    name = "labels"

    def check(
        self, rows: Rows, count: int | None = None, device: torch.device | None = None
    ) -> None:
        labels = rows
        if not isinstance(labels, Tensor):
            raise TypeError(
                f"labels: expected a torch.Tensor of int64, got {type(labels).__name__}"
            )
        if labels.dtype != torch.int64:
            found = str(labels.dtype).removeprefix("torch.")
            raise TypeError(f"labels: expected dtype int64, got {found}")
        if labels.ndim != 1 or (count is not None and labels.shape[0] != count):
            wanted = "[B]" if count is None else f"[{count}]"
            raise ValueError(f"labels: expected shape {wanted}, got {list(labels.shape)}")
        if device is not None and labels.device != device:
            raise ValueError(
                f"labels: expected a tensor on {device}, the model's device, "
                f"got one on {labels.device}"
            )
        if torch.compiler.is_compiling() or labels.device.type != "cpu" or not labels.numel():
            return
        low, high = (int(v) for v in labels.aminmax())
        if low < 0 or high > self.num_classes:
            raise ValueError(
                f"labels: expected values in 0..{self.num_classes} ({self.num_classes} is the null "
                f"class), got {low if low < 0 else high}"
            )

    def null(self, rows: Rows) -> Tensor:
        return torch.full_like(rows, self.num_classes)

    def draw(self, rule: str, seed: int, indices: Tensor) -> Tensor:
        if rule == "balanced":
            return indices % self.num_classes
        if rule != "uniform":
            raise ValueError(f"labels: expected one of {', '.join(RULES)}, got {rule!r}")
        uniform = row_uniform(torch.tensor(seed, device=indices.device), indices, _STREAM)
        return (uniform * self.num_classes).long()

    def random(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randint(self.num_classes, (count,), generator=rng)

    def read(self, rows: int | Sequence[int] | Tensor | np.ndarray) -> Tensor:
        """Classes as int64 ``[B]``, on the CPU unless they are a tensor elsewhere."""
        labels = rows
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
            if 0 < len(y) <= _FEW and not y.is_cuda:
                values = y.tolist()
                self._check_range(min(values), max(values))
            elif len(y):
                self._check_range(*map(int, y.aminmax()))
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
            self._check_range(min(values), max(values))  # 64 bits may be too few for them
        return torch.tensor(values, dtype=torch.int64, device="cpu")

    def about(self, rows: Rows, row: int) -> str:
        return f"label {int(rows[row])}"

    @property
    def settings(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}

    def _check_range(self, least: int, most: int) -> None:
        if least < 0 or most >= self.num_classes:
            raise ValueError(
                f"labels: expected values in 0..{self.num_classes - 1}, "
                f"got {least if least < 0 else most}"
            )


def condition_of(model: Any) -> Condition:
    """What a model's ``condition`` says; of one with ``num_classes`` alone, classes."""
    found = getattr(model, "condition", None)
    return found if isinstance(found, Condition) else ClassCondition(int(model.num_classes))


def integer(value: Any, name: str) -> int:
    """``value``, an integer argument, as int; TypeError for bool, float and everything else."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name}: expected an integer, got {value!r} of type {type(value).__name__}"
        ) from None
