"""The logit student's loss in Triton: one block a row, filtered and then summed beside the
student's, relative to the largest of its logits so far; the gradient in blocks of a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_rows import (
    FLOAT_MAX,
    LOG2E,
    OPTIONS,
    TeacherRows,
    block_at,
    filter_row,
    guided_logits,
    held_block,
    on_device_of,
    row_layout,
    unit_stride,
)

_BLOCK = 2048  # codes of a row at a time whose gradient is written


@triton.jit(do_not_specialize=["top_k"])
def logit_distillation_loss_fwd_kernel(
    p_loss, p_statistics, p_student, student_stride, p_cond, p_uncond, p_scale, cond_stride,
    uncond_stride, vocabulary, top_k, top_p,
    NUCLEUS: tl.constexpr, GUIDED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """grid (rows)."""
    i_r = tl.program_id(0).to(tl.int64)
    p_cond += i_r * cond_stride
    p_uncond += i_r * uncond_stride
    p_student += i_r * student_stride
    row = (p_cond, p_uncond, tl.load(p_scale + i_r), 1.0, vocabulary)
    b_held, total = held_block(row, GUIDED, BLOCK, WHOLE)
    threshold, largest = filter_row(row, b_held, total, top_k, top_p, NUCLEUS, GUIDED, BLOCK, WHOLE)

    highest = -FLOAT_MAX  # of the student's logits
    of_student, of_teacher, terms = 0.0, 0.0, 0.0
    for first in range(0, BLOCK if WHOLE else vocabulary, BLOCK):
        b_x = block_at(row, b_held, first, GUIDED, BLOCK, WHOLE)
        o_v = first + tl.arange(0, BLOCK)
        b_s = tl.load(p_student + o_v, mask=o_v < vocabulary, other=float("-inf")).to(tl.float32)
        above = tl.maximum(highest, tl.max(b_s, 0))
        # The distance may be infinite where nothing was there.
        terms += tl.where(of_teacher > 0.0, of_teacher * (above - highest), 0.0)
        of_student *= tl.exp2((highest - above) * LOG2E)
        highest = above
        b_apart, b_below = b_s - highest, b_x - largest
        of_student += tl.sum(tl.exp2(b_apart * LOG2E), 0)
        b_mass = tl.where(b_x >= threshold, tl.exp2(b_below * LOG2E), 0.0)
        of_teacher += tl.sum(b_mass, 0)
        terms += tl.sum(tl.where(b_mass > 0.0, b_mass * (b_below - b_apart), 0.0), 0)
    # A NaN or +inf in the student's row makes a NaN; without a finite logit nothing is there.
    valid = (threshold == threshold) & (of_student > 0.0)
    loss = terms / of_teacher + tl.log(of_student / of_teacher)
    nan = float("nan")
    tl.store(p_loss + i_r, tl.where(valid, loss, nan))
    p_statistics += i_r * 5
    tl.store(p_statistics, threshold)
    tl.store(p_statistics + 1, largest)
    tl.store(p_statistics + 2, tl.where(valid, 1.0 / of_teacher, nan))
    tl.store(p_statistics + 3, highest)
    tl.store(p_statistics + 4, tl.where(valid, 1.0 / of_student, nan))


@triton.jit
def logit_distillation_gradient_kernel(
    p_gradient, p_incoming, p_statistics, p_student, student_stride, p_cond, p_uncond, p_scale,
    cond_stride, uncond_stride, vocabulary, GUIDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grid (rows, ceil(vocabulary / BLOCK))."""
    i_r = tl.program_id(0).to(tl.int64)
    o_v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_v = o_v < vocabulary
    p_cond += i_r * cond_stride
    p_uncond += i_r * uncond_stride
    scale, incoming = tl.load(p_scale + i_r), tl.load(p_incoming + i_r)
    p_statistics += i_r * 5
    threshold, largest = tl.load(p_statistics), tl.load(p_statistics + 1)
    of_teacher = incoming * tl.load(p_statistics + 2)
    highest, of_student = tl.load(p_statistics + 3), incoming * tl.load(p_statistics + 4)
    b_x = guided_logits(p_cond + o_v, p_uncond + o_v, scale, m_v, GUIDED)
    b_s = tl.load(p_student + i_r * student_stride + o_v, mask=m_v, other=0.0).to(tl.float32)
    b_mass = tl.where(b_x >= threshold, tl.exp2((b_x - largest) * LOG2E), 0.0)
    b_slope = tl.exp2((b_s - highest) * LOG2E) * of_student - b_mass * of_teacher
    tl.store(p_gradient + i_r * vocabulary + o_v, b_slope, mask=m_v)


def logit_distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    top_k: int,
    top_p: float,
) -> tuple[Tensor, Tensor]:
    """Loss and statistics; arguments as in :mod:`.reference`."""
    loss = guidance_scale.new_empty(len(logits))
    statistics = guidance_scale.new_empty(len(logits), 5)
    if loss.numel() == 0:
        return loss, statistics
    with on_device_of(logits):
        teacher = TeacherRows(teacher_logits, uncond_logits, guidance_scale, top_k, top_p)
        student = unit_stride(logits)
        logit_distillation_loss_fwd_kernel[(teacher.rows,)](
            loss, statistics, student, student.stride(0), *teacher.arguments, teacher.top_k, top_p,
            NUCLEUS=top_p < 1, GUIDED=teacher.guided, **row_layout(teacher.vocabulary), **OPTIONS,
        )  # fmt: skip
    return loss, statistics


def logit_distillation_loss_backward(
    grad: Tensor,
    statistics: Tensor,
    logits: Tensor,
    teacher_logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
) -> Tensor:
    """The gradient; arguments as in :mod:`.reference`."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if gradient.numel() == 0:
        return gradient
    with on_device_of(logits):
        teacher = TeacherRows(teacher_logits, uncond_logits, guidance_scale, 0, 1.0)
        student = unit_stride(logits)
        block = min(_BLOCK, triton.next_power_of_2(teacher.vocabulary))
        logit_distillation_gradient_kernel[(teacher.rows, triton.cdiv(teacher.vocabulary, block))](
            gradient, grad.contiguous(), statistics.contiguous(), student, student.stride(0),
            *teacher.arguments, GUIDED=teacher.guided, BLOCK=block, num_warps=4, **OPTIONS,
        )  # fmt: skip
    return gradient
