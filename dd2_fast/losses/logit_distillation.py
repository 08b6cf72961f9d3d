"""The logit student's loss: the divergence of its distribution from the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.filtering import filter_logits, guided_logits
from .target import TeacherDistribution


def logit_distillation_loss(logits: Tensor, teacher: TeacherDistribution) -> Tensor:
    """``KL(p | q) = sum_j p_j (log p_j - log q_j)`` a token, ``[*]``, in nats.

    ``p`` is the teacher's guided, filtered distribution, ``q = softmax(logits)`` the student's over
    all codes; so zero says that the student needs neither guidance nor filters. The gradient in
    the logits is ``q - p``; none flows to the teacher.

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
    student = _rows(logits)
    with torch.no_grad():
        rows = teacher.logits.shape[:-1]
        conditional = _rows(teacher.logits)
        scale = torch.as_tensor(
            teacher.guidance_scale, dtype=conditional.dtype, device=conditional.device
        )
        guided = guided_logits(
            conditional,
            None if teacher.uncond_logits is None else _rows(teacher.uncond_logits),
            scale.expand(rows).reshape(-1),
        )
        p = filter_logits(guided, teacher.top_k, teacher.top_p).softmax(-1)
        entropy = torch.special.entr(p).sum(-1)
    loss: Tensor = F.cross_entropy(student, p, reduction="none") - entropy
    return loss.reshape(rows)


def _rows(logits: Tensor) -> Tensor:
    """``[R, V]`` of ``[*, V]``, in float32 or wider."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.flatten(0, -2).to(wide)
