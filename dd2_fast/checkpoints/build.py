"""A model from its kind, its configuration and its tensors, without a second copy of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..reading import shown
from .registry import class_of

_NAMED, _LONGEST = 4, 300
_LARGEST_NUMBER = 1 << 16  # of a configuration whose tensors are all smaller
_FILLED = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
_CONSTANT = (torch.arange, torch.linspace, torch.eye, torch.tensor)


def build_model(
    source: str, kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> nn.Module:
    """The model of ``kind`` that holds ``tensors`` themselves, evaluating and without gradients.

    What the tensors do not bear out is refused before anything is made of it. Tensors that share
    memory (tied weights) get their own, and floating ones of several dtypes become one, see
    :func:`one_dtype`. Nothing global is changed, so threads may build at the same time.

    Raises:
        ValueError: the configuration builds no model, or tensors are missing, unexpected,
            misshapen or of the wrong sort; ``source`` leads the message.
    """
    _check_numbers(source, config, tensors)
    with torch.inference_mode(False):
        try:
            with _Outline(len(tensors)):
                model = class_of(kind)(**config)
        except Exception as error:  # wrong values of a configuration fail in every way there is
            reason = shown(str(error)[:_LONGEST]) or type(error).__name__
            raise ValueError(
                f"{source}: the configuration does not build a {kind}: {reason}"
            ) from error
        _check_tensors(source, model.state_dict(), tensors)
        model.load_state_dict(one_dtype(source, _untied(tensors)), assign=True)
        _place_constants(model, tensors)
        return model.eval().requires_grad_(False)


class _Outline(TorchFunctionMode):
    """Modules made inside have their shapes but no memory; what they compute as constants is real.

    Tensors that are there to be filled, as parameters are, lie on the meta device, tables made by
    ``arange`` and its like on the CPU, whatever the default device is. A mode belongs to its
    thread. One that makes many times more tensors than the file has is stopped.
    """

    def __init__(self, tensors: int) -> None:
        super().__init__()
        self.tensors, self.left = tensors, 4 * tensors + 256

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _FILLED:
            self.left -= 1
            if self.left < 0:
                raise ValueError(f"it has many more tensors than the {self.tensors} there are")
            kwargs.setdefault("device", None)
            kwargs["device"] = "meta" if kwargs["device"] is None else kwargs["device"]
        elif func in _CONSTANT and kwargs.get("device") is None:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def one_dtype(source: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` with all floating ones in the dtype that most of their values have.

    A layer takes one dtype, so float32 norms among bfloat16 matrices become bfloat16. Where a value
    would become infinite so, all take the wider dtype.

    Raises:
        ValueError: floating dtypes that torch does not compute in, such as float8.
    """
    floating = {name: value for name, value in tensors.items() if value.is_floating_point()}
    counts: Counter[torch.dtype] = Counter()
    for value in floating.values():
        counts[value.dtype] += value.numel()
    for name, value in floating.items():
        if value.dtype.itemsize < 2:
            raise ValueError(
                f"{source}: {shown(name)}: expected float16, bfloat16, float32 or float64, got "
                f"{_sort(value)}; convert it first"
            )
    if len(counts) < 2:
        return dict(tensors)
    dtype = max(counts, key=lambda one: (counts[one], one.itemsize))
    rest = {name: value.to(dtype) for name, value in floating.items() if value.dtype != dtype}
    if any(_overflows(floating[name], value) for name, value in rest.items()):
        for one in counts:
            dtype = torch.promote_types(dtype, one)
        rest = {name: value.to(dtype) for name, value in floating.items()}
    return {**tensors, **rest}


def _overflows(before: Tensor, after: Tensor) -> bool:
    return not before.is_meta and bool((after.isinf() & before.isfinite()).any())


def _untied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` that overlap no other one, and that can be trained: copies where they did not."""
    untied = {
        name: value.clone() if value.is_inference() else value for name, value in tensors.items()
    }
    for name in overlapping(untied):
        untied[name] = untied[name].clone()
    return untied


def overlapping(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors whose memory another one begins before and reaches into."""

    def extent(value: Tensor) -> tuple[str, int, int]:
        strides = zip(value.shape, value.stride(), strict=True)
        last = sum((size - 1) * stride for size, stride in strides)
        start = value.data_ptr()
        return str(value.device), start, start + (last + 1) * value.element_size()

    places = [
        (*extent(value), name)
        for name, value in tensors.items()
        if value.layout == torch.strided and not value.is_meta and value.numel()
    ]
    found, reached = [], ("", 0)
    for device, start, end, name in sorted(places, key=lambda place: place[:3]):
        if device == reached[0] and start < reached[1]:
            found.append(name)
            end = max(end, reached[1])
        reached = (device, end)
    return found


def _check_numbers(source: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise unless every number of a configuration could be a size or a count of ``tensors``."""
    sizes = [size for value in tensors.values() if value.numel() for size in value.shape]
    largest = max([_LARGEST_NUMBER, *sizes])
    waiting = [(name, value) for name, value in config.items() if not isinstance(value, Tensor)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{name}.{key}", inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            if len(value) > largest:
                raise ValueError(
                    f"{source}: {shown(name)}: expected a short list, got {len(value)} items"
                )
            waiting += [(name, inner) for inner in value]
        elif isinstance(value, int) and abs(value) > largest:
            raise ValueError(
                f"{source}: {shown(name)}: expected at most {largest}, by the sizes of its "
                f"{len(tensors)} tensors, got {value}"
            )


def _place_constants(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put what follows from the configuration where the weights are."""
    device = next((v.device for v in tensors.values() if not v.is_meta), torch.device("cpu"))
    saved = set(model.state_dict())
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if ".".join(filter(None, (path, name))) in saved:
                continue
            if buffer.is_meta:  # made by one of _FILLED: our own mistake
                raise AssertionError(f"{type(module).__name__}.{name}: a constant without memory")
            setattr(module, name, buffer.to(device))


def _check_tensors(source: str, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    problems = []
    both = [(name, expected[name], got[name]) for name in expected if name in got]
    missing = [f"{name} {list(expected[name].shape)}" for name in expected if name not in got]
    extra = [f"{shown(name)} {list(got[name].shape)}" for name in got if name not in expected]
    misshapen = [
        f"{name} (expected {list(a.shape)}, got {list(b.shape)})"
        for name, a, b in both
        if a.shape != b.shape
    ]
    wrong = [
        f"{name} (expected {_sort(a)}, got {_sort(b)})"
        for name, a, b in both
        if a.is_floating_point() != b.is_floating_point()
    ]
    for what, names in (
        ("missing", missing),
        ("unexpected", extra),
        ("misshapen", misshapen),
        ("of the wrong dtype", wrong),
    ):
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            problems.append(f"{len(names)} {what}: {', '.join(names[:_NAMED])}{more}")
    if problems:
        raise ValueError(
            f"{source}: expected {len(expected)} tensors as its configuration says, got "
            f"{len(got)}; {'; '.join(problems)}"
        )


def _sort(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
