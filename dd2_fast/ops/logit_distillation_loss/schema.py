"""``torch.library`` definition of the logit student's loss: schema, fake, dispatch and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks, registry
from ..derivatives import check_reverse_mode, kept, refuse_graph

_ROWS = "Tensor logits, Tensor teacher_logits, Tensor? uncond_logits, Tensor guidance_scale"
_TENSORS = ("logits", "teacher_logits", "uncond_logits", "guidance_scale")

# Backward works the distributions out again from five numbers a row. A gradient that forward
# writes, for backward to scale, moves six values a code where this moves seven (five both without
# guidance), but in place that changes an output, which torch.compile refuses, else it takes its
# memory twice.
_library = torch.library.Library("dd2_fast", "FRAGMENT")
_library.define(
    f"logit_distillation_loss({_ROWS}, int top_k, float top_p, str backend) "
    "-> (Tensor loss, Tensor statistics)"
)
_library.define(
    f"logit_distillation_loss_backward(Tensor grad, Tensor statistics, {_ROWS}, str backend) "
    "-> Tensor"
)


@registry.exact_products
def _forward(
    logits: Tensor,
    teacher_logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    top_k: int,
    top_p: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    dtype = checks.compute_dtype(logits, teacher_logits)
    module = registry.resolve("logit_distillation_loss", backend, logits.device, dtype)
    return module.logit_distillation_loss(
        logits, teacher_logits, uncond_logits, guidance_scale, top_k, top_p
    )


@registry.exact_products
def _gradient(grad: Tensor, statistics: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    *teacher, backend = rest
    dtype = checks.compute_dtype(logits, *teacher)
    module = registry.resolve("logit_distillation_loss", backend, logits.device, dtype)
    return module.logit_distillation_loss_backward(grad, statistics, logits, *teacher)


def _fake(
    logits: Tensor,
    teacher_logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    rows = logits.shape[0]
    return guidance_scale.new_empty(rows), guidance_scale.new_empty(rows, 5)


def _fake_gradient(grad: Tensor, statistics: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    statistics, tensors, ctx.backend = output[1], inputs[: len(_TENSORS)], inputs[-1]
    ctx.mark_non_differentiable(statistics)
    ctx.has_uncond = tensors[2] is not None
    ctx.save_for_backward(statistics, *kept(tensors))


def _backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    check_reverse_mode("logit_distillation_loss", grad)
    if torch.is_grad_enabled():
        refuse_graph("logit_distillation_loss")
    statistics, *saved = ctx.saved_tensors
    if not ctx.has_uncond:
        saved.insert(2, None)
    checks.check_memory(**dict(zip(_TENSORS, saved, strict=True)))
    gradient = torch.ops.dd2_fast.logit_distillation_loss_backward(
        grad.contiguous(), statistics, *saved, ctx.backend
    )
    return gradient, *[None] * 6


for _key in ("CPU", "CUDA"):
    _library.impl("logit_distillation_loss", _forward, _key)
    _library.impl("logit_distillation_loss_backward", _gradient, _key)
torch.library.register_fake("dd2_fast::logit_distillation_loss", _fake, lib=_library)
torch.library.register_fake(
    "dd2_fast::logit_distillation_loss_backward", _fake_gradient, lib=_library
)
torch.library.register_autograd(
    "dd2_fast::logit_distillation_loss", _backward, setup_context=_setup_context, lib=_library
)
