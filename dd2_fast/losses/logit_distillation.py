"""The logit student's loss: the divergence of its distribution from the teacher's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..ops.filtering import filter_logits, guided_logits
from .target import TeacherDistribution

_VALUES = 1 << 24  # logits of the rows that are worked on at once


def logit_distillation_loss(logits: Tensor, teacher: TeacherDistribution) -> Tensor:
    """``KL(p | q) = sum_j p_j (log p_j - log q_j)`` a token, ``[*]``, in nats.

    ``p`` is the teacher's guided, filtered distribution, ``q = softmax(logits)`` the student's over
    all codes; so zero says that the student needs neither guidance nor filters. The gradient in
    the logits is ``q - p``, worked out with the loss, some rows at a time: besides it nothing of
    size ``[*, V]`` is kept. None flows to the teacher, and it is taken once.

    Args:
        logits: the student's ``[*, V]``. teacher: distributions of the tokens' rows.

    Raises:
        ValueError: logits of another shape than the teacher's.
    """
    if logits.shape != teacher.logits.shape:
        raise ValueError(
            f"logits: expected shape {list(teacher.logits.shape)}, that of the teacher's, got "
            f"{list(logits.shape)}"
        )
    lead, conditional, uncond = logits.shape[:-1], teacher.logits, teacher.uncond_logits
    wide = torch.promote_types(conditional.dtype, torch.float32)
    scale = torch.as_tensor(teacher.guidance_scale, dtype=wide, device=conditional.device)
    loss: Tensor = _Divergence.apply(
        logits.flatten(0, -2),
        conditional.detach().flatten(0, -2),
        None if uncond is None else uncond.detach().flatten(0, -2),
        scale.expand(lead).reshape(-1),
        teacher.top_k,
        teacher.top_p,
    )
    return loss.reshape(lead)


class _Divergence(torch.autograd.Function):
    """Of rows ``[R, V]``, to ``[R]``."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        conditional: Tensor,
        uncond: Tensor | None,
        scale: Tensor,
        top_k: int,
        top_p: float,
    ) -> Tensor:
        rows, vocabulary = logits.shape
        loss = logits.new_empty(rows, dtype=torch.promote_types(logits.dtype, torch.float32))
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        size = max(1, _VALUES // vocabulary)
        for first in range(0, rows, size):
            part = slice(first, first + size)
            wide = scale.dtype
            others = None if uncond is None else uncond[part].to(wide)
            guided = guided_logits(conditional[part].to(wide), others, scale[part])
            p = filter_logits(guided, top_k, top_p).softmax(-1)
            log_q = logits[part].to(loss.dtype).log_softmax(-1)
            entropy = torch.special.entr(p).sum(-1)
            loss[part] = -torch.linalg.vecdot(p.to(loss.dtype), log_q) - entropy
            if gradient is not None:
                gradient[part] = log_q.exp_().sub_(p)
        ctx.gradient = gradient
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError(
                "logits: expected one backward pass of logit_distillation_loss, which scales its "
                "gradient in place, got another"
            )
        return gradient.mul_(weight[:, None]), None, None, None, None, None
