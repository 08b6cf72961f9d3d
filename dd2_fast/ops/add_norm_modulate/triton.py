"""The addition, norm and modulation in Triton: a program a row forward, a program a tile of one
image's rows backward.

Backward, a program adds up what its rows give to the gradients that rows share, in order, and
writes the sums; a second kernel adds those of all programs, in order: no atomics, so a call gives
the same bits every time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_rows import OPTIONS, on_device_of, unit_stride

LARGEST_WIDTH = 16384
_VALUES = 32  # of a row that a lane holds forward, and backward
_VALUES_BACKWARD = 8
_PROGRAMS = 640  # backward: five for each multiprocessor of a large GPU have 40 KB in flight
# Whose sum a gradient is: nobody's (it is not wanted), an image's rows', all rows', one row's.
NONE, IMAGE, ALL, ROW = range(4)
_NONE, _IMAGE, _ALL, _ROW = map(tl.constexpr, range(4))


@triton.jit
def _load(p_x, image_stride, row_stride, i_b, i_n, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """A row in float32, zero beyond its end; strides of 0 where rows share it."""
    o_d = tl.arange(0, BLOCK)
    p_row = p_x + tl.cast(i_b, tl.int64) * image_stride + tl.cast(i_n, tl.int64) * row_stride + o_d
    b_x = tl.load(p_row) if BLOCK == SIZE else tl.load(p_row, mask=o_d < SIZE, other=0.0)
    return b_x.to(tl.float32)


@triton.jit
def _store(p_x, i_r, b_x, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Row ``i_r`` of a contiguous tensor."""
    o_d = tl.arange(0, BLOCK)
    p_row = p_x + tl.cast(i_r, tl.int64) * SIZE + o_d
    b_x = b_x.to(p_x.dtype.element_ty)
    if BLOCK == SIZE:
        tl.store(p_row, b_x)
    else:
        tl.store(p_row, b_x, mask=o_d < SIZE)


@triton.jit(do_not_specialize=["count"])
def add_norm_modulate_fwd_kernel(
    p_total, p_y, p_mean, p_rstd, p_h, p_branch, p_gate, p_bias, p_gain, p_shift,
    h_image, h_row, branch_image, branch_row, gate_image, gate_row, gain_image, gain_row,
    shift_image, shift_row, count, eps,
    PLUS_ONE: tl.constexpr, CENTRED: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grid (images * count)"""
    i_r = tl.program_id(0)
    i_b, i_n = i_r // count, i_r % count
    b_x = _load(p_h, h_image, h_row, i_b, i_n, SIZE, BLOCK)
    if p_branch is not None:
        b_added = _load(p_branch, branch_image, branch_row, i_b, i_n, SIZE, BLOCK)
        if p_bias is not None:
            b_added += _load(p_bias, 0, 0, i_b, i_n, SIZE, BLOCK)
        if p_gate is not None:
            b_added *= _load(p_gate, gate_image, gate_row, i_b, i_n, SIZE, BLOCK)
        b_x += b_added
        _store(p_total, i_r, b_x, SIZE, BLOCK)
        b_x = b_x.to(p_total.dtype.element_ty).to(tl.float32)
    if CENTRED:
        mean = tl.sum(b_x, 0) / SIZE
        tl.store(p_mean + i_r, mean)
        b_x -= mean
        if BLOCK != SIZE:
            b_x = tl.where(tl.arange(0, BLOCK) < SIZE, b_x, 0.0)
    rstd = 1.0 / tl.sqrt_rn(tl.sum(b_x * b_x, 0) / SIZE + eps)
    tl.store(p_rstd + i_r, rstd)
    b_y = b_x * rstd
    if p_gain is not None:
        b_gain = _load(p_gain, gain_image, gain_row, i_b, i_n, SIZE, BLOCK)
        b_y *= b_gain + 1.0 if PLUS_ONE else b_gain
    if p_shift is not None:
        b_y += _load(p_shift, shift_image, shift_row, i_b, i_n, SIZE, BLOCK)
    _store(p_y, i_r, b_y, SIZE, BLOCK)


@triton.jit
def _share(
    p_image, p_all, i_p, b_x, KIND: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    BEFORE_IMAGE: tl.constexpr, BEFORE_ALL: tl.constexpr, OF_IMAGE: tl.constexpr,
    OF_ALL: tl.constexpr,
):  # fmt: skip
    """Write a program's sum among those of its kind."""
    if KIND == _IMAGE:
        _store(p_image, i_p * OF_IMAGE + BEFORE_IMAGE, b_x, SIZE, BLOCK)
    elif KIND == _ALL:
        _store(p_all, i_p * OF_ALL + BEFORE_ALL, b_x, SIZE, BLOCK)


@triton.jit(do_not_specialize=["count", "tiles", "tile"])
def add_norm_modulate_bwd_kernel(
    p_grad_h, p_grad_branch, p_grad_gate, p_grad_gain, p_grad_shift, p_image, p_all,
    p_grad_total, p_grad_y, p_x, p_mean, p_rstd, p_branch, p_gate, p_bias, p_gain,
    x_image, x_row, branch_image, branch_row, gate_image, gate_row, gain_image, gain_row,
    count, tiles, tile,
    PLUS_ONE: tl.constexpr, CENTRED: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr,
    GAIN: tl.constexpr, SHIFT: tl.constexpr, GATE_BY_ROW: tl.constexpr, GAIN_BY_ROW: tl.constexpr,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grid (images * tiles), of ``tile`` rows each; GATE, ...: how a gradient is shared."""
    i_p = tl.program_id(0)
    i_b, first = i_p // tiles, i_p % tiles * tile
    b_zero = tl.zeros([BLOCK], tl.float32)
    b_sum_gate, b_sum_bias, b_sum_gain, b_sum_shift = b_zero, b_zero, b_zero, b_zero
    b_gate, b_bias, b_gain = b_zero, b_zero, b_zero
    if p_gate is not None and not GATE_BY_ROW:
        b_gate = _load(p_gate, gate_image, 0, i_b, first, SIZE, BLOCK)
    if p_bias is not None:
        b_bias = _load(p_bias, 0, 0, i_b, first, SIZE, BLOCK)
    if p_gain is not None and not GAIN_BY_ROW:
        b_gain = _load(p_gain, gain_image, 0, i_b, first, SIZE, BLOCK)
    for i_n in range(first, tl.minimum(first + tile, count)):
        i_r = i_b * count + i_n
        b_z = _load(p_x, x_image, x_row, i_b, i_n, SIZE, BLOCK)
        b_grad_y = _load(p_grad_y, 0, SIZE, i_b, i_r, SIZE, BLOCK)
        rstd = tl.load(p_rstd + i_r)
        if CENTRED:
            b_z -= tl.load(p_mean + i_r)
        b_z *= rstd
        if SHIFT == _ROW:
            _store(p_grad_shift, i_r, b_grad_y, SIZE, BLOCK)
        elif SHIFT != _NONE:
            b_sum_shift += b_grad_y
        if GAIN == _ROW:
            _store(p_grad_gain, i_r, b_grad_y * b_z, SIZE, BLOCK)
        elif GAIN != _NONE:
            b_sum_gain += b_grad_y * b_z
        b_d = b_grad_y
        if p_gain is not None:
            if GAIN_BY_ROW:
                b_gain = _load(p_gain, gain_image, gain_row, i_b, i_n, SIZE, BLOCK)
            b_d *= b_gain + 1.0 if PLUS_ONE else b_gain
        b_grad = b_d - b_z * (tl.sum(b_d * b_z, 0) / SIZE)
        if CENTRED:
            b_grad -= tl.sum(b_d, 0) / SIZE
        b_grad *= rstd
        if p_grad_total is not None:
            b_grad += _load(p_grad_total, 0, SIZE, i_b, i_r, SIZE, BLOCK)
        if p_grad_h is not None:
            _store(p_grad_h, i_r, b_grad, SIZE, BLOCK)
        if p_gate is not None and GATE_BY_ROW:
            b_gate = _load(p_gate, gate_image, gate_row, i_b, i_n, SIZE, BLOCK)
        if GATE != _NONE:
            b_added = _load(p_branch, branch_image, branch_row, i_b, i_n, SIZE, BLOCK)
            if p_bias is not None:
                b_added += b_bias
            if GATE == _ROW:
                _store(p_grad_gate, i_r, b_grad * b_added, SIZE, BLOCK)
            else:
                b_sum_gate += b_grad * b_added
        if p_gate is not None:
            b_grad *= b_gate
        if p_grad_branch is not None:
            _store(p_grad_branch, i_r, b_grad, SIZE, BLOCK)
        if BIAS != _NONE:
            b_sum_bias += b_grad
    GATES: tl.constexpr = GATE == _IMAGE
    GAINS: tl.constexpr = GAIN == _IMAGE
    OF_IMAGE: tl.constexpr = GATES + GAINS + (SHIFT == _IMAGE)
    ALL_GATES: tl.constexpr = GATE == _ALL
    ALL_GAINS: tl.constexpr = GAIN == _ALL
    BIASES: tl.constexpr = BIAS == _ALL
    OF_ALL: tl.constexpr = ALL_GATES + BIASES + ALL_GAINS + (SHIFT == _ALL)
    _share(p_image, p_all, i_p, b_sum_gate, GATE, SIZE, BLOCK, 0, 0, OF_IMAGE, OF_ALL)
    _share(p_image, p_all, i_p, b_sum_bias, BIAS, SIZE, BLOCK, 0, ALL_GATES, OF_IMAGE, OF_ALL)
    _share(
        p_image, p_all, i_p, b_sum_gain, GAIN, SIZE, BLOCK,
        GATES, ALL_GATES + BIASES, OF_IMAGE, OF_ALL,
    )  # fmt: skip
    _share(
        p_image, p_all, i_p, b_sum_shift, SHIFT, SIZE, BLOCK,
        GATES + GAINS, ALL_GATES + BIASES + ALL_GAINS, OF_IMAGE, OF_ALL,
    )  # fmt: skip


@triton.jit(do_not_specialize=["parts"])
def add_norm_modulate_sum_kernel(
    p_first, p_second, p_third, p_fourth, p_parts, parts,
    KINDS: tl.constexpr, SIZE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """grid (groups, KINDS, columns): ``[groups, SIZE]`` of each kind, sums of ``parts`` rows of
    ``[groups, parts, KINDS, SIZE]``."""
    i_g, i_k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_p, o_d = tl.arange(0, BLOCK_P), tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    p_parts += (i_g * parts * KINDS + i_k) * SIZE + o_d[None, :]
    b_sum = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    for first in range(0, parts, BLOCK_P):
        o_row = (first + o_p).to(tl.int64)[:, None] * (KINDS * SIZE)
        m_part = (first + o_p < parts)[:, None] & (o_d < SIZE)[None, :]
        b_sum += tl.load(p_parts + o_row, mask=m_part, other=0.0)
    b_total, o_out, m_out = tl.sum(b_sum, 0), i_g * SIZE + o_d, o_d < SIZE
    if i_k == 0:
        tl.store(p_first + o_out, b_total.to(p_first.dtype.element_ty), mask=m_out)
    if KINDS > 1 and i_k == 1:
        tl.store(p_second + o_out, b_total.to(p_second.dtype.element_ty), mask=m_out)
    if KINDS > 2 and i_k == 2:
        tl.store(p_third + o_out, b_total.to(p_third.dtype.element_ty), mask=m_out)
    if KINDS > 3 and i_k == 3:
        tl.store(p_fourth + o_out, b_total.to(p_fourth.dtype.element_ty), mask=m_out)


def add_norm_modulate(
    h: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    bias: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    plus_one: bool,
    centred: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum, norm and statistics; arguments as in :mod:`.reference`."""
    shape = h.shape
    total = h.new_empty(0 if branch is None else shape)
    y = h.new_empty(shape)
    mean = h.new_empty(shape[:2] if centred else 0, dtype=torch.float32)
    rstd = h.new_empty(shape[:2], dtype=torch.float32)
    if h.numel() == 0:
        return total, y, mean, rstd
    h, branch, gate, gain, shift = _by_images(h, branch, gate, gain, shift)
    images, count, size = h.shape
    block, warps = _layout(size, _VALUES)
    with on_device_of(h):
        add_norm_modulate_fwd_kernel[(images * count,)](
            None if branch is None else total, y, mean if centred else None, rstd,
            h, branch, gate, None if bias is None else bias.contiguous(), gain, shift,
            *_strides(h), *_strides(branch), *_strides(gate), *_strides(gain), *_strides(shift),
            count, eps, PLUS_ONE=plus_one, CENTRED=centred, SIZE=size, BLOCK=block,
            num_warps=warps, **OPTIONS,
        )  # fmt: skip
    return total, y, mean, rstd


def add_norm_modulate_backward(
    grad_total: Tensor | None,
    grad_y: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    bias: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    plus_one: bool,
    centred: bool,
    wants: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients; arguments as in :mod:`.reference`."""
    given = (x, branch, gate, bias, gain, shift)
    grads = [
        x.new_empty(value.shape, dtype=value.dtype)
        if wanted and value is not None
        else x.new_empty(0)
        for value, wanted in zip(given, wants, strict=True)
    ]
    if x.numel() == 0:
        return tuple(grad.zero_() for grad in grads)
    x, branch, gate, gain, shift = _by_images(x, branch, gate, gain, shift)
    images, count, size = x.shape
    rows, values = (gate, gain, shift), (2, 4, 5)
    kinds = {i: _kind(value, wants[i]) for i, value in zip(values, rows, strict=True)}
    kinds[3] = ALL if wants[3] and bias is not None else NONE
    tile = _tile(images * count)
    tiles = triton.cdiv(count, tile)
    sums = [
        ([grads[i] for i in sorted(kinds) if kinds[i] == kind], groups)
        for kind, groups in ((IMAGE, images), (ALL, 1))
    ]
    parts = [
        x.new_empty(images * tiles, len(of), size, dtype=torch.float32) if of else None
        for of, _ in sums
    ]
    outputs = [
        grads[i] if wants[i] and given[i] is not None and kinds.get(i, ROW) == ROW else None
        for i in (0, 1, *values)
    ]
    block, warps = _layout(size, _VALUES_BACKWARD)
    with on_device_of(x):
        add_norm_modulate_bwd_kernel[(images * tiles,)](
            *outputs, *parts, None if grad_total is None else grad_total.contiguous(),
            grad_y.contiguous(), x, mean if centred else None, rstd, branch, gate,
            None if bias is None else bias.contiguous(), gain,
            *_strides(x), *_strides(branch), *_strides(gate), *_strides(gain), count, tiles, tile,
            PLUS_ONE=plus_one, CENTRED=centred, GATE=kinds[2], BIAS=kinds[3], GAIN=kinds[4],
            SHIFT=kinds[5], GATE_BY_ROW=_by_row(gate), GAIN_BY_ROW=_by_row(gain),
            SIZE=size, BLOCK=block, num_warps=warps, **OPTIONS,
        )  # fmt: skip
        for (of, groups), part in zip(sums, parts, strict=True):
            if part is not None:
                count = images * tiles // groups
                together, columns = (32, 64) if count <= 32 else (128, 32)
                grid = (groups, len(of), triton.cdiv(size, columns))
                add_norm_modulate_sum_kernel[grid](
                    *of, *[None] * (4 - len(of)), part, count, KINDS=len(of), SIZE=size,
                    BLOCK_P=together, BLOCK_D=columns, num_warps=4, **OPTIONS,
                )  # fmt: skip
    return tuple(grads)


def _by_images(x: Tensor, *others: Tensor | None) -> list[Tensor]:
    """Tensors whose rows lie together; images of one row each are the rows of one image."""
    tensors = [None if t is None else unit_stride(t) for t in (x, *others)]
    if x.shape[1] == 1:
        tensors = [None if t is None else t.transpose(0, 1) for t in tensors]
    return tensors  # type: ignore[return-value]


def _strides(x: Tensor | None) -> tuple[int, int]:
    """From image to image and from row to row; 0 along what is shared."""
    if x is None:
        return 0, 0
    return tuple(0 if n == 1 else step for n, step in zip(x.shape[:2], x.stride(), strict=False))  # type: ignore[return-value]


def _by_row(x: Tensor | None) -> bool:
    return x is not None and x.shape[1] > 1


def _kind(x: Tensor | None, wanted: bool) -> int:
    if x is None or not wanted:
        return NONE
    if _by_row(x):
        return ROW
    return IMAGE if x.shape[0] > 1 else ALL


def _tile(rows: int) -> int:
    """Rows of a program backward: so many that their sums are few beside them."""
    return min(32, max(4, rows // _PROGRAMS))


def _layout(size: int, values: int) -> tuple[int, int]:
    """Values of a row that a program holds, and its warps."""
    if size > LARGEST_WIDTH:
        raise RuntimeError(
            "backend 'triton' cannot run add_norm_modulate: expected rows of at most "
            f"{LARGEST_WIDTH} values, got D = {size}"
        )
    block = triton.next_power_of_2(size)
    return block, min(16, max(1, block // (32 * values)))
