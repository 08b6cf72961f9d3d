"""``torch.library`` definition of the CSD loss: schema, fake, dispatch and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks, registry
from ..conditional_score.schema import TENSORS
from ..derivatives import check_reverse_mode, kept, refuse_graph

# The gradients are outputs too: backward only scales what forward has already computed.
_library = torch.library.Library("dd2_fast", "FRAGMENT")
_library.define(
    "csd_loss(Tensor x, Tensor fake_x0, Tensor? weight, float weight_power, str objective, "
    "float alpha, bool wants_x_t, Tensor x_t, Tensor t, Tensor logits, Tensor? uncond_logits, "
    "Tensor guidance_scale, Tensor codebook, int top_k, float top_p, str backend) "
    "-> (Tensor loss, Tensor grad_x, Tensor grad_fake, Tensor grad_x_t)"
)
_FIRST_OF_POSTERIOR = 7  # x_t


@registry.exact_products
def _forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *arguments, backend = rest
    module = registry.resolve("csd_loss", backend, x.device, x.dtype)
    return module.csd_loss(x, *arguments)


def _fake(
    x: Tensor,
    fake_x0: Tensor,
    weight: Tensor | None,
    weight_power: float,
    objective: str,
    alpha: float,
    wants_x_t: bool,
    x_t: Tensor,
    *posterior: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sid = objective == "sid"
    return (
        x_t.new_empty(x_t.shape[:-1]),
        x_t.new_empty(x_t.shape),
        x_t.new_empty(x_t.shape if sid else 0),
        x_t.new_empty(x_t.shape if sid and wants_x_t else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.objective, ctx.alpha, ctx.wants_x_t = inputs[4:_FIRST_OF_POSTERIOR]
    ctx.mark_non_differentiable(*output[1:])
    saved = output[1:]
    if ctx.wants_x_t and ctx.alpha != 1:
        tensors, ctx.settings = inputs[_FIRST_OF_POSTERIOR:-3], inputs[-3:]
        ctx.has_uncond = tensors[3] is not None
        saved = *saved, *kept(tensors)
    ctx.save_for_backward(*saved)


def _backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    check_reverse_mode("csd_loss", grad)
    if torch.is_grad_enabled():
        refuse_graph("csd_loss")
    grad_x, grad_fake, grad_x_t, *posterior = ctx.saved_tensors
    grad = grad[..., None]
    grad_x = (grad * grad_x).sum(1)
    if ctx.objective == "dmd":
        return grad_x, *[None] * 15
    if not ctx.wants_x_t:
        return grad_x, grad * grad_fake, *[None] * 14
    grad_x_t = grad * grad_x_t
    if posterior:
        if not ctx.has_uncond:
            posterior.insert(3, None)
        checks.check_memory(**dict(zip(TENSORS, posterior, strict=True)))
        grad_x_t = torch.ops.dd2_fast.conditional_x0_vjp(grad_x_t, *posterior, *ctx.settings)
    return grad_x, grad * grad_fake, *[None] * 5, grad_x_t, *[None] * 8


for _key in ("CPU", "CUDA"):
    _library.impl("csd_loss", _forward, _key)
torch.library.register_fake("dd2_fast::csd_loss", _fake, lib=_library)
torch.library.register_autograd(
    "dd2_fast::csd_loss", _backward, setup_context=_setup_context, lib=_library
)
