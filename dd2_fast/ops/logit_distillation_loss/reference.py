"""The logit student's loss in plain torch: the specification of every other backend.

With masses ``m_j = exp(l_j - max l)`` of the codes that the teacher's filters keep,
``e_j = exp(s_j - max s)`` of the student's logits, and their sums ``M`` and ``E``, the
distributions are ``p = m / M`` and ``q = e / E``, and

    L = sum_j p_j (log p_j - log q_j)
      = sum_j m_j ((l_j - max l) - (s_j - max s)) / M + log(E / M),        dL/ds = q - p

where a code without mass, ``m_j = 0``, adds nothing, whatever ``s_j`` is.

Some rows at a time: beside the gradient nothing of the size of the logits is kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..filtering import filter_logits, guided_logits

VALUES = 1 << 24  # logits of the rows that are worked on at once


def logit_distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    top_k: int,
    top_p: float,
) -> tuple[Tensor, Tensor]:
    """Loss ``[R]`` of the student's ``logits [R, V]``, and what its gradient needs of every row:
    ``[R, 5]``, the smallest logit that the teacher keeps, ``max l``, ``1 / M``, ``max s`` and
    ``1 / E``.

    Works in the dtype of ``guidance_scale [R]`` (float32 or float64), which both results have. Of a
    row without a distribution the loss and a reciprocal are NaN.
    """
    loss, statistics = guidance_scale.new_empty(len(logits)), [guidance_scale.new_empty(0, 5)]
    teacher = teacher_logits, uncond_logits, guidance_scale
    for part, student, guided in _parts(logits, *teacher):
        kept = filter_logits(guided, top_k, top_p)
        smallest = kept.where(kept > -torch.inf, torch.inf).amin(-1)
        largest, of_student = kept.amax(-1), student.amax(-1)
        kept, student = kept - largest[:, None], student - of_student[:, None]
        masses, total = kept.exp(), student.exp().sum(-1)
        terms = (kept.sub_(student).mul_(masses)).masked_fill_(masses == 0, 0).sum(-1)
        mass = masses.sum(-1)
        loss[part] = terms / mass + (total / mass).log()
        statistics.append(torch.stack([smallest, largest, 1 / mass, of_student, 1 / total], -1))
    return loss, torch.cat(statistics)


def logit_distillation_loss_backward(
    grad: Tensor,
    statistics: Tensor,
    logits: Tensor,
    teacher_logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
) -> Tensor:
    """``grad (q - p)``, ``[R, V]`` in the dtype of ``logits``, for ``grad [R]``."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    teacher = teacher_logits, uncond_logits, guidance_scale
    for part, student, guided in _parts(logits, *teacher):
        columns = statistics[part, :, None].unbind(1)
        smallest, largest, per_mass, of_student, per_total = columns
        p = (guided - largest).exp_().masked_fill_(~(guided >= smallest), 0).mul_(per_mass)
        q = (student - of_student).exp_().mul_(per_total)
        gradient[part] = q.sub_(p).mul_(grad[part, None])
    return gradient


def _parts(
    logits: Tensor, teacher_logits: Tensor, uncond_logits: Tensor | None, guidance_scale: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some rows, the student's logits and the teacher's guided ones."""
    rows, vocabulary = logits.shape
    dtype, size = guidance_scale.dtype, max(1, VALUES // vocabulary)
    for first in range(0, rows, size):
        part = slice(first, first + size)
        uncond = None if uncond_logits is None else uncond_logits[part].to(dtype)
        guided = guided_logits(teacher_logits[part].to(dtype), uncond, guidance_scale[part])
        yield part, logits[part].to(dtype), guided
