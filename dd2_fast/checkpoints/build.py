"""A model from its kind, its configuration and its tensors, without a second copy of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from .registry import class_of

_NAMED = 4


def build_model(
    source: str, kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> nn.Module:
    """The model of ``kind`` that holds ``tensors`` themselves, evaluating and without gradients.

    Raises:
        ValueError: the configuration builds no model, or tensors are missing, unexpected,
            misshapen or of the wrong sort; ``source`` leads the message.
    """
    try:
        with _parameters_on_meta():
            model = class_of(kind)(**config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: the configuration does not build a {kind}: {error}") from error
    _check_tensors(source, model.state_dict(), tensors)
    model.load_state_dict(dict(tensors), assign=True)
    return model.eval().requires_grad_(False)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules that this thread makes have parameters without memory; buffers are real."""
    thread = threading.get_ident()

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if parameter.is_meta or threading.get_ident() != thread:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    # A hook may return what to register instead, which its annotation leaves out.
    hook = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def _check_tensors(source: str, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    problems = []
    both = [(name, expected[name], got[name]) for name in expected if name in got]
    missing = [f"{name} {list(expected[name].shape)}" for name in expected if name not in got]
    extra = [f"{name} {list(got[name].shape)}" for name in got if name not in expected]
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
