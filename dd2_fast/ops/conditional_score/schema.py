"""``torch.library`` definition of the posterior mean: schema, fake, dispatch and autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import checks, registry
from ..derivatives import check_reverse_mode, kept, refuse_graph
from . import reference

_ARGUMENTS = (
    "Tensor x_t, Tensor t, Tensor logits, Tensor? uncond_logits, Tensor guidance_scale, "
    "Tensor codebook, int top_k, float top_p, str backend"
)

TENSORS = ("x_t", "t", "logits", "uncond_logits", "guidance_scale", "codebook")

_library = torch.library.Library("dd2_fast", "FRAGMENT")
_library.define(f"conditional_x0({_ARGUMENTS}) -> Tensor")
_library.define(f"conditional_x0_vjp(Tensor grad, {_ARGUMENTS}) -> Tensor")


@registry.exact_products
def _forward(
    x_t: Tensor,
    t: Tensor,
    logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    codebook: Tensor,
    top_k: int,
    top_p: float,
    backend: str,
) -> Tensor:
    module = registry.resolve("conditional_score", backend, logits.device, x_t.dtype)
    return module.conditional_x0(
        x_t, t, logits, uncond_logits, guidance_scale, codebook, top_k, top_p
    )


@registry.exact_products
def _vjp(grad: Tensor, x_t: Tensor, t: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    *arguments, backend = rest
    module = registry.resolve("conditional_score", backend, logits.device, x_t.dtype)
    return module.conditional_x0_vjp(grad, x_t, t, logits, *arguments)


def _fake(x_t: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x_t, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, ctx.settings = inputs[: len(TENSORS)], inputs[len(TENSORS) :]
    ctx.has_uncond = tensors[3] is not None
    ctx.save_for_backward(*kept(tensors))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    check_reverse_mode("conditional_score", grad)
    saved = list(ctx.saved_tensors)
    if not ctx.has_uncond:
        saved.insert(3, None)
    checks.check_memory(**dict(zip(TENSORS, saved, strict=True)))
    vjp: Callable[..., Tensor] = torch.ops.dd2_fast.conditional_x0_vjp
    if torch.is_grad_enabled():
        vjp = recorded_vjp("conditional_score", _vjp, ctx.settings[-1], grad)
    return vjp(grad.contiguous(), *saved, *ctx.settings), *[None] * 8


def recorded_vjp(
    operator: str, vjp: Callable[..., Tensor], backend: str, grad: Tensor
) -> Callable[..., Tensor]:
    """``vjp`` where the backend is plain torch, which autograd records for the next derivative."""
    module = registry.resolve("conditional_score", backend, grad.device, grad.dtype)
    return vjp if module is reference else refuse_graph(operator)


for _key in ("CPU", "CUDA"):
    _library.impl("conditional_x0", _forward, _key)
    _library.impl("conditional_x0_vjp", _vjp, _key)
torch.library.register_fake("dd2_fast::conditional_x0", _fake, lib=_library)
torch.library.register_fake("dd2_fast::conditional_x0_vjp", _fake, lib=_library)
torch.library.register_autograd(
    "dd2_fast::conditional_x0", _backward, setup_context=_setup_context, lib=_library
)
