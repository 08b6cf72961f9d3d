"""The logit student's loss: the divergence of its distribution from the teacher's."""

from __future__ import annotations

from torch import Tensor

from ..ops import logit_distillation_loss as divergence
from .target import TeacherDistribution


def logit_distillation_loss(logits: Tensor, teacher: TeacherDistribution) -> Tensor:
    """``KL(p | q) = sum_j p_j (log p_j - log q_j)`` a token, ``[*]``, in nats.

    ``p`` is the teacher's guided, filtered distribution, ``q = softmax(logits)`` the student's over
    all codes; so zero says that the student needs neither guidance nor filters. The gradient in
    the logits is ``q - p``; besides it nothing of size ``[*, V]`` is made
    (:func:`dd2_fast.ops.logit_distillation_loss`). None flows to the teacher.

    Args:
        logits: the student's ``[*, V]``. teacher: distributions of the tokens' rows.

    Raises:
        ValueError: logits of another shape than the teacher's.
    """
    uncond = teacher.uncond_logits
    return divergence(
        logits,
        teacher.logits.detach(),
        uncond_logits=None if uncond is None else uncond.detach(),
        guidance_scale=1.0 if uncond is None else teacher.guidance_scale,
        top_k=teacher.top_k,
        top_p=teacher.top_p,
    )
