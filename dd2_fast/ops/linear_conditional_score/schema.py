"""``torch.library`` definition of the posterior mean over a linear head: schema, fake, dispatch and
autograd. It has no kernels: the backends are those of ``conditional_score``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import checks, registry
from ..conditional_score.schema import recorded_vjp
from ..derivatives import check_reverse_mode, kept
from .chunks import consume

_ARGUMENTS = (
    "Tensor x_t, Tensor t, Tensor hidden, Tensor? uncond_hidden, Tensor weight, Tensor? bias, "
    "Tensor guidance_scale, Tensor codebook, int top_k, float top_p, str backend"
)
_TENSORS = (
    "x_t", "t", "hidden", "uncond_hidden", "weight", "bias", "guidance_scale", "codebook",
)  # fmt: skip

_library = torch.library.Library("dd2_fast", "FRAGMENT")
_library.define(f"linear_conditional_x0({_ARGUMENTS}) -> Tensor")
_library.define(f"linear_conditional_x0_vjp(Tensor grad, {_ARGUMENTS}) -> Tensor")


@registry.exact_products
def _forward(x_t: Tensor, t: Tensor, hidden: Tensor, *rest: Any) -> Tensor:
    *arguments, backend = rest
    module = registry.resolve("conditional_score", backend, hidden.device, x_t.dtype)
    return consume(module.conditional_x0, (x_t, t), hidden, *arguments)


@registry.exact_products
def _vjp(grad: Tensor, x_t: Tensor, t: Tensor, hidden: Tensor, *rest: Any) -> Tensor:
    *arguments, backend = rest
    module = registry.resolve("conditional_score", backend, hidden.device, x_t.dtype)
    return consume(module.conditional_x0_vjp, (grad, x_t, t), hidden, *arguments)


def _fake(x_t: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x_t, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, ctx.settings = inputs[: len(_TENSORS)], inputs[len(_TENSORS) :]
    ctx.present = [tensor is not None for tensor in tensors]
    ctx.save_for_backward(*kept(tensors))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    check_reverse_mode("linear_conditional_score", grad)
    saved = iter(ctx.saved_tensors)
    tensors = [next(saved) if present else None for present in ctx.present]
    checks.check_memory(**dict(zip(_TENSORS, tensors, strict=True)))
    vjp: Callable[..., Tensor] = torch.ops.dd2_fast.linear_conditional_x0_vjp
    if torch.is_grad_enabled():
        vjp = recorded_vjp("linear_conditional_score", _vjp, ctx.settings[-1], grad)
    gradient = vjp(grad.contiguous(), *tensors, *ctx.settings)
    return gradient, *[None] * (len(ctx.present) + len(ctx.settings) - 1)


for _key in ("CPU", "CUDA"):
    _library.impl("linear_conditional_x0", _forward, _key)
    _library.impl("linear_conditional_x0_vjp", _vjp, _key)
torch.library.register_fake("dd2_fast::linear_conditional_x0", _fake, lib=_library)
torch.library.register_fake("dd2_fast::linear_conditional_x0_vjp", _fake, lib=_library)
torch.library.register_autograd(
    "dd2_fast::linear_conditional_x0", _backward, setup_context=_setup_context, lib=_library
)
