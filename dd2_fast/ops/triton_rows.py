"""Triton code for the operators over a teacher's logits: guidance, and the filters of a row.

Names: ``p_`` pointer, ``o_`` offsets, ``m_`` mask, ``b_`` block of values, ``i_`` index. A ``row``
is the tuple (p_cond, p_uncond, guidance scale, inverse temperature, vocabulary).
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
FLOAT_MAX = tl.constexpr(3.402823466e38)
_INTERPOLATED_PASSES = tl.constexpr(12)  # then halving the floats, which ties cannot stall
_COARSE_PASSES = tl.constexpr(3)  # then onto the row's own logits, which ends among the last few
_LARGEST_BLOCK = 16384  # of a row that is held in registers
_STREAMED_BLOCK = 8192
OPTIONS = {"enable_fp_fusion": True}  # of every launch: a default that Triton is about to change


@triton.jit
def guided_logits(p_cond, p_uncond, scale, m_v, GUIDED: tl.constexpr):
    """``l_uncond + s (l_cond - l_uncond)``, -inf outside the mask and where either is -inf.

    The fma is explicit, so that all kernels form the same float.
    """
    minus_infinity = float("-inf")
    guided = tl.load(p_cond, mask=m_v, other=minus_infinity).to(tl.float32)
    if GUIDED:
        b_cond = guided
        b_uncond = tl.load(p_uncond, mask=m_v, other=minus_infinity).to(tl.float32)
        guided = tl.fma(scale, b_cond - b_uncond, b_uncond)
        excluded = (b_cond == minus_infinity) | (b_uncond == minus_infinity)
        guided = tl.where(excluded, minus_infinity, guided)
    return guided


@triton.jit
def row_block(row, first, GUIDED: tl.constexpr, BLOCK: tl.constexpr):
    """Tempered guided logits of codes ``first, ..., first + BLOCK - 1``; -inf beyond the last."""
    p_cond, p_uncond, scale, inverse_temperature, vocabulary = row
    o_v = first + tl.arange(0, BLOCK)
    guided = guided_logits(p_cond + o_v, p_uncond + o_v, scale, o_v < vocabulary, GUIDED)
    return guided * inverse_temperature


@triton.jit
def held_block(row, GUIDED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """The row in registers if it fits in one block; else a stand-in, and every pass reads it."""
    return row_block(row, 0, GUIDED, BLOCK) if WHOLE else 0.0


@triton.jit
def block_at(row, b_held, first, GUIDED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    return b_held if WHOLE else row_block(row, first, GUIDED, BLOCK)


@triton.jit
def _statistics(row, b_held, GUIDED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """Largest, smallest, mean, deviation and number of the finite logits; number of NaN, +inf."""
    largest, smallest = float("-inf"), float("inf")
    total, square, count, bad = 0.0, 0.0, 0.0, 0.0
    for first in range(0, BLOCK if WHOLE else row[4], BLOCK):
        b_x = block_at(row, b_held, first, GUIDED, BLOCK, WHOLE)
        m_finite = (b_x > float("-inf")) & (b_x <= FLOAT_MAX)
        b_finite = tl.where(m_finite, b_x, 0.0)
        largest = tl.maximum(largest, tl.max(tl.where(m_finite, b_x, float("-inf")), 0))
        smallest = tl.minimum(smallest, tl.min(tl.where(m_finite, b_x, float("inf")), 0))
        total += tl.sum(b_finite, 0)
        square += tl.sum(b_finite * b_finite, 0)
        count += tl.sum(m_finite.to(tl.float32), 0)
        bad += tl.sum(tl.where(b_x <= FLOAT_MAX, 0.0, 1.0), 0)
    mean = total / tl.maximum(count, 1.0)
    variance = tl.maximum(square / tl.maximum(count, 1.0) - mean * mean, 0.0)
    return largest, smallest, mean, tl.sqrt(variance), count, bad


@triton.jit
def _amount_from(
    row, b_held, guess, largest,
    MASS: tl.constexpr, GUIDED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """How many logits are at least ``guess``, or their mass ``exp(l - largest)``."""
    amount = 0.0
    for first in range(0, BLOCK if WHOLE else row[4], BLOCK):
        b_x = block_at(row, b_held, first, GUIDED, BLOCK, WHOLE)
        if MASS:
            b_each = tl.where(b_x >= guess, tl.exp2((b_x - largest) * LOG2E), 0.0)
        else:
            b_each = tl.where(b_x >= guess, 1.0, 0.0)
        amount += tl.sum(b_each, 0)
    return amount


@triton.jit
def _neighbour(
    row, b_held, guess, up,
    GUIDED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The smallest logit that is at least ``guess``, or (not up) the largest below it."""
    sign = tl.where(up, 1.0, -1.0)
    nearest = float("inf")
    for first in range(0, BLOCK if WHOLE else row[4], BLOCK):
        b_x = block_at(row, b_held, first, GUIDED, BLOCK, WHOLE)
        nearest = tl.minimum(
            nearest, tl.min(tl.where((b_x >= guess) == up, b_x * sign, float("inf")), 0)
        )
    return nearest * sign


@triton.jit
def _float_key(value):
    """Order-preserving integer of a float; both zeros give 0."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, (bits ^ 0x7FFFFFFF) + 1)


@triton.jit
def _key_float(key):
    return tl.where(key >= 0, key, (key - 1) ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def _middle(low, top):
    """The float halfway from low to top in the order of floats: above low, at most top."""
    total = _float_key(low).to(tl.int64) + _float_key(top).to(tl.int64)
    return _key_float(((total + 1) >> 1).to(tl.int32))


@triton.jit
def _search(
    row, b_held, low, top, at_low, wanted, guess, step, largest,
    MASS: tl.constexpr, GUIDED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The smallest logit whose strictly larger ones amount (a count or a mass) to less than
    ``wanted``, known to lie in [low, top]; ``at_low``, at least ``wanted``, lies from low on.

    Interpolates the logarithm of the amount, and steps outwards until both ends have moved.
    """
    above, start, passes = 0.0, at_low, 0
    while low < top:
        # Beyond this, and equally without interpolation, rounding could leave the interval.
        guess = tl.where((guess > low) & (guess <= top), guess, _middle(low, top))
        found = _amount_from(row, b_held, guess, largest, MASS, GUIDED, BLOCK, WHOLE)
        enough = found >= wanted
        low = tl.where(enough, guess, low)
        at_low = tl.where(enough, found, at_low)
        top = tl.where(enough, top, _key_float(_float_key(guess) - 1))
        above = tl.where(enough, above, found)
        if passes >= _COARSE_PASSES:
            exact = _neighbour(row, b_held, guess, enough, GUIDED, BLOCK, WHOLE)
            low = tl.where(enough, exact, low)
            top = tl.where(enough, top, exact)
        passes += 1
        slope = tl.log(at_low) - tl.log(above)
        interpolated = low + (top - low) * ((tl.log(at_low) - tl.log(wanted)) / slope)
        interpolated = tl.where(passes % 4 == 3, 0.5 * low + 0.5 * top, interpolated)
        interpolated = tl.where(enough & (above == 0.0), low + step * passes, interpolated)
        outside = (at_low == start) & (found < wanted)
        interpolated = tl.where(outside, top - step * passes, interpolated)
        guess = tl.where(passes < _INTERPOLATED_PASSES, interpolated, _middle(low, top))
    return low


@triton.jit
def filter_row(
    row, b_held, top_k, top_p, NUCLEUS: tl.constexpr,
    GUIDED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The smallest logit that top-k and top-p keep, and the largest; NaN for an invalid row.

    Invalid is a NaN or +inf logit, or no finite one.
    """
    largest, smallest, mean, deviation, count, bad = _statistics(row, b_held, GUIDED, BLOCK, WHOLE)
    valid = (bad == 0.0) & (count > 0.0)
    threshold = tl.where(valid, smallest, float("nan"))
    wanted = top_k - 0.5
    if (top_k > 0) & (wanted < count):
        tail = tl.minimum(wanted / count, 1.0 - wanted / count)
        # Standard normal quantile, to the few digits that a first guess needs.
        r = tl.sqrt(-2.0 * tl.log(tail))
        z = r - (2.30753 + 0.27061 * r) / (1.0 + 0.99229 * r + 0.04481 * r * r)
        guess = mean + deviation * tl.where(wanted + wanted < count, z, -z)
        threshold = _search(
            row, b_held, threshold, largest, count, wanted, guess, 0.25 * deviation, largest,
            False, GUIDED, BLOCK, WHOLE,
        )  # fmt: skip
    if NUCLEUS:  # top_p is below 1
        mass = _amount_from(row, b_held, threshold, largest, True, GUIDED, BLOCK, WHOLE)
        threshold = _search(
            row, b_held, threshold, largest, mass, top_p * mass, largest - 4.0, 2.0, largest,
            True, GUIDED, BLOCK, WHOLE,
        )  # fmt: skip
    return threshold, largest


@triton.jit(do_not_specialize=["top_k"])
def filter_rows_fwd_kernel(
    p_threshold, p_largest, p_cond, p_uncond, p_scale, cond_stride, uncond_stride, vocabulary,
    top_k, top_p,
    NUCLEUS: tl.constexpr, GUIDED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """grid (rows): threshold and largest logit of every row."""
    i_r = tl.program_id(0).to(tl.int64)
    scale = tl.load(p_scale + i_r)
    row = (p_cond + i_r * cond_stride, p_uncond + i_r * uncond_stride, scale, 1.0, vocabulary)
    b_held = held_block(row, GUIDED, BLOCK, WHOLE)
    threshold, largest = filter_row(row, b_held, top_k, top_p, NUCLEUS, GUIDED, BLOCK, WHOLE)
    tl.store(p_threshold + i_r, threshold)
    tl.store(p_largest + i_r, largest)


def row_layout(vocabulary: int) -> dict[str, int | bool]:
    """How a kernel with one block a row walks it: in registers where it fits, else streamed."""
    whole = vocabulary <= _LARGEST_BLOCK
    block = max(128, triton.next_power_of_2(vocabulary)) if whole else _STREAMED_BLOCK
    return {"BLOCK": block, "WHOLE": whole, "num_warps": min(16, max(1, block // 512))}


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Makes the tensor's GPU the current one, whose stream Triton launches on."""
    return torch.cuda.device_of(tensor)


def compute_major(tensor: Tensor) -> int:
    """Major compute capability of the tensor's GPU; Triton's interpreter, on CPUs, acts as a 9."""
    return torch.cuda.get_device_capability(tensor.device)[0] if tensor.is_cuda else 9


def unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


class TeacherRows:
    """A teacher's rows as the kernels take them: pointers, strides, and what the filters keep."""

    def __init__(
        self, logits: Tensor, uncond_logits: Tensor | None, scale: Tensor, top_k: int, top_p: float
    ) -> None:
        self.rows, self.vocabulary = logits.shape
        self.guided = uncond_logits is not None
        self.filtered = 0 < top_k < self.vocabulary or top_p < 1
        self.cond = unit_stride(logits)
        self.uncond = self.cond if uncond_logits is None else unit_stride(uncond_logits)
        self.scale = scale.contiguous()
        self.top_k, self.top_p = (top_k if top_k < self.vocabulary else 0), top_p

    @property
    def arguments(self) -> tuple[Tensor | int, ...]:
        """``p_cond, p_uncond, p_scale, cond_stride, uncond_stride, vocabulary`` of a kernel."""
        return self.cond, self.uncond, self.scale, *self._sizes

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return self.cond.stride(0), self.uncond.stride(0), self.vocabulary

    @property
    def aligned(self) -> bool:
        """Whether Triton may load several logits at a time."""
        return all(size % 16 == 0 for size in self._sizes)

    def limits(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Threshold and largest logit of every row; None, and no pass, where nothing filters."""
        if not self.filtered:
            return None, None
        threshold, largest = self.scale.new_empty(2, self.rows)
        filter_rows_fwd_kernel[(self.rows,)](
            threshold, largest, *self.arguments, self.top_k, self.top_p,
            NUCLEUS=self.top_p < 1, GUIDED=self.guided, **row_layout(self.vocabulary), **OPTIONS,
        )  # fmt: skip
        return threshold, largest
