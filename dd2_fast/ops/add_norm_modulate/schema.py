"""``torch.library`` definition of the operator: schema, fakes, dispatch and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks, registry
from ..derivatives import check_reverse_mode, kept, refuse_graph

_library = torch.library.Library("dd2_fast", "FRAGMENT")
_TENSORS = "Tensor? branch, Tensor? gate, Tensor? bias, Tensor? gain, Tensor? shift"
_library.define(
    f"add_norm_modulate(Tensor h, {_TENSORS}, bool plus_one, bool centred, float eps, str backend) "
    "-> (Tensor total, Tensor y, Tensor mean, Tensor rstd)"
)
_library.define(
    "add_norm_modulate_backward(Tensor? grad_total, Tensor grad_y, Tensor x, Tensor mean, Tensor "
    f"rstd, {_TENSORS}, bool plus_one, bool centred, bool[] wants, str backend) -> (Tensor h, "
    "Tensor branch, Tensor gate, Tensor bias, Tensor gain, Tensor shift)"
)


@registry.exact_products
def _forward(h: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *arguments, backend = rest
    dtype = checks.compute_dtype(h, *arguments)
    module = registry.resolve("add_norm_modulate", backend, h.device, dtype)
    return module.add_norm_modulate(h, *arguments)


def _fake(
    h: Tensor, branch: Tensor | None, gate: Tensor | None, bias: Tensor | None,
    gain: Tensor | None, shift: Tensor | None, plus_one: bool, centred: bool, eps: float,
    backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    dtype = checks.compute_dtype(h, branch, gate, bias, gain, shift)
    statistics = h.new_empty(h.shape[:-1], dtype=dtype)
    return (
        h.new_empty(0) if branch is None else h.new_empty(h.shape),
        h.new_empty(h.shape),
        h.new_empty(h.shape[:-1] if centred else 0, dtype=dtype),
        statistics,
    )


@registry.exact_products
def _run_backward(grad_total: Tensor | None, grad_y: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *arguments, backend = rest
    dtype = checks.compute_dtype(*arguments[:8])
    module = registry.resolve("add_norm_modulate", backend, grad_y.device, dtype)
    return module.add_norm_modulate_backward(grad_total, grad_y, *arguments)


def _fake_backward(
    grad_total: Tensor | None, grad_y: Tensor, x: Tensor, mean: Tensor, rstd: Tensor,
    branch: Tensor | None, gate: Tensor | None, bias: Tensor | None, gain: Tensor | None,
    shift: Tensor | None, plus_one: bool, centred: bool, wants: Sequence[bool], backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    return tuple(
        x.new_empty(value.shape, dtype=value.dtype)
        if wanted and value is not None
        else x.new_empty(0)
        for value, wanted in zip((x, branch, gate, bias, gain, shift), wants, strict=True)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    h, *tensors = inputs[:6]
    ctx.plus_one, ctx.centred, _, ctx.backend = inputs[6:]
    total, _, mean, rstd = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.there = [tensor is not None for tensor in tensors]
    x = h if tensors[0] is None else total
    ctx.save_for_backward(*kept([x]), mean, rstd, *kept(tensors))


def _backward(
    ctx: Any, grad_total: Tensor | None, grad_y: Tensor | None, *unused: Any
) -> tuple[Tensor | None, ...]:
    check_reverse_mode("add_norm_modulate", grad_total, grad_y)
    if torch.is_grad_enabled():
        refuse_graph("add_norm_modulate")
    x, mean, rstd, *saved = ctx.saved_tensors
    present = iter(saved)
    tensors = [next(present) if there else None for there in ctx.there]
    names = ("h", "branch", "gate", "bias", "scale" if ctx.plus_one else "weight", "shift")
    checks.check_memory(**dict(zip(names, (x, *tensors), strict=True)))
    branch, gate = tensors[:2]
    wants = list(ctx.needs_input_grad[:6])
    # An ungated branch has the gradient of h.
    shared = branch is not None and gate is None and branch.dtype == x.dtype
    of_branch = wants[1]
    if shared:
        wants[0], wants[1] = wants[0] or of_branch, False
    if branch is None:
        grad_total = None
    grads = torch.ops.dd2_fast.add_norm_modulate_backward(
        grad_total, torch.zeros_like(x) if grad_y is None else grad_y, x, mean, rstd, *tensors,
        ctx.plus_one, ctx.centred, wants, ctx.backend,
    )  # fmt: skip
    found = [grad if wanted else None for grad, wanted in zip(grads, wants, strict=True)]
    if shared and of_branch:
        found[1] = found[0]
    return *found, None, None, None, None


for _key in ("CPU", "CUDA"):
    _library.impl("add_norm_modulate", _forward, _key)
    _library.impl("add_norm_modulate_backward", _run_backward, _key)
torch.library.register_fake("dd2_fast::add_norm_modulate", _fake, lib=_library)
torch.library.register_fake("dd2_fast::add_norm_modulate_backward", _fake_backward, lib=_library)
torch.library.register_autograd(
    "dd2_fast::add_norm_modulate", _backward, setup_context=_setup_context, lib=_library
)
