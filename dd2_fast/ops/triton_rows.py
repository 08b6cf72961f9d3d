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
_FAR = tl.constexpr(20.0)  # below the largest, logits have hardly any mass
_LARGEST_BLOCK = 16384  # of a row that is held in registers
_STREAMED_BLOCK = 8192
OPTIONS = {"enable_fp_fusion": True}  # of every launch: a default that Triton is about to change


@triton.jit
def guided_logits(p_cond, p_uncond, scale, m_v, GUIDED: tl.constexpr, FINITE: tl.constexpr = False):
    """``l_uncond + s (l_cond - l_uncond)``, -inf outside the mask and where either is -inf; if
    FINITE, there -inf, +inf or NaN.

    The fma is explicit, so that all kernels form the same float.
    """
    minus_infinity = float("-inf")
    guided = tl.load(p_cond, mask=m_v, other=minus_infinity).to(tl.float32)
    if GUIDED:
        b_cond = guided
        b_uncond = tl.load(p_uncond, mask=m_v, other=minus_infinity).to(tl.float32)
        guided = tl.fma(scale, b_cond - b_uncond, b_uncond)
        if not FINITE:
            excluded = (b_cond == minus_infinity) | (b_uncond == minus_infinity)
            guided = tl.where(excluded, minus_infinity, guided)
    return guided


@triton.jit
def row_block(row, first, GUIDED: tl.constexpr, BLOCK: tl.constexpr, FINITE: tl.constexpr = False):
    """Tempered guided logits of codes ``first, ..., first + BLOCK - 1``; -inf beyond the last."""
    p_cond, p_uncond, scale, inverse_temperature, vocabulary = row
    o_v = first + tl.arange(0, BLOCK)
    guided = guided_logits(p_cond + o_v, p_uncond + o_v, scale, o_v < vocabulary, GUIDED, FINITE)
    return guided * inverse_temperature


@triton.jit
def held_block(row, GUIDED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """The row in registers if it fits in one block; else a stand-in, and every pass reads it. And
    the sum of its logits, NaN where one may not be finite."""
    total = float("nan")
    if WHOLE:
        b_held = row_block(row, 0, GUIDED, BLOCK, True)
        total = tl.sum(b_held, 0)
        total = tl.where(tl.abs(total) <= FLOAT_MAX, total, float("nan"))
        if total != total:
            b_held = row_block(row, 0, GUIDED, BLOCK)
    else:
        b_held = 0.0
    return b_held, total


@triton.jit
def block_at(row, b_held, first, GUIDED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    return b_held if WHOLE else row_block(row, first, GUIDED, BLOCK)


@triton.jit
def _statistics(row, b_held, total, GUIDED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """Largest, mean, deviation and number of the finite logits; number of NaN, +inf."""
    square, count, bad = 0.0, 1.0 * row[4], 0.0
    if WHOLE and total == total:
        largest = tl.max(b_held, 0)
        square = tl.sum(b_held * b_held, 0)
    else:
        largest, total, count = float("-inf"), 0.0, 0.0
        for first in range(0, BLOCK if WHOLE else row[4], BLOCK):
            b_x = block_at(row, b_held, first, GUIDED, BLOCK, WHOLE)
            m_finite = (b_x > float("-inf")) & (b_x <= FLOAT_MAX)
            b_finite = tl.where(m_finite, b_x, 0.0)
            largest = tl.maximum(largest, tl.max(tl.where(m_finite, b_x, float("-inf")), 0))
            total += tl.sum(b_finite, 0)
            square += tl.sum(b_finite * b_finite, 0)
            count += tl.sum(m_finite.to(tl.float32), 0)
            bad += tl.sum(tl.where(b_x <= FLOAT_MAX, 0.0, 1.0), 0)
    mean = total / tl.maximum(count, 1.0)
    variance = tl.maximum(square / tl.maximum(count, 1.0) - mean * mean, 0.0)
    return largest, mean, tl.sqrt(variance), count, bad


@triton.jit
def _masses_from(b_x, floor, largest):
    """``exp(l - largest)`` of the logits that are at least ``floor``."""
    return tl.where(b_x >= floor, tl.exp2((b_x - largest) * LOG2E), 0.0)


@triton.jit
def _neighbour(
    row, b_held, guess, up,
    GUIDED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The smallest logit above ``guess``, or (not up) the largest below it."""
    sign = tl.where(up, 1.0, -1.0)
    nearest = float("inf")
    for first in range(0, BLOCK if WHOLE else row[4], BLOCK):
        b_x = block_at(row, b_held, first, GUIDED, BLOCK, WHOLE) * sign
        nearest = tl.minimum(nearest, tl.min(tl.where(b_x > guess * sign, b_x, float("inf")), 0))
    return nearest * sign


@triton.jit
def _places(b_x, greatest, scale, unit, BINS: tl.constexpr):
    """In which bin logits lie, of bins of equal width from ``greatest`` down: 0, 1, ..., BINS for
    all beyond the last, and negative for those above. Monotonic."""
    b_down = tl.fma(b_x, -unit, greatest * unit) * scale
    return tl.floor(tl.minimum(b_down, BINS)).to(tl.int32)


@triton.jit
def _select(
    row, b_held, least, greatest, wanted, floor, largest,
    MASS: tl.constexpr, GUIDED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The smallest logit whose strictly larger ones amount (a count, or a mass of those from
    ``floor`` on) to less than ``wanted``, known to lie in [floor, greatest] and thought to be at
    least ``least``.

    A histogram tells the bin that holds it, whose logits the next histogram spreads, until they are
    equal. Masses take a bin's logits for equal, so the masses of its own and of larger ones are
    summed: where it is not the bin, the search goes on above or below it.
    """
    BINS: tl.constexpr = 1024 if BLOCK <= 4096 else 2048
    above = 0.0  # the amount of what is larger than `greatest`
    surely = floor
    while least < greatest:
        # In units in which the range is neither infinite nor too small to divide by.
        half = 0.5 * greatest - 0.5 * least
        unit = tl.where(half > 1e38, 0.5, tl.where(half < 1e-18, 2.0**100, 1.0))
        width = (greatest * unit - least * unit) / (BINS - 2)
        scale = 1.0 / width
        b_count = tl.zeros([BINS], tl.int32)
        for first in range(0, BLOCK if WHOLE else row[4], BLOCK):
            b_x = block_at(row, b_held, first, GUIDED, BLOCK, WHOLE)
            b_place = _places(b_x, greatest, scale, unit, BINS)
            b_count += tl.histogram(b_place, BINS, mask=(b_place >= 0) & (b_place < BINS))
        b_amount = b_count.to(tl.float32)
        if MASS:
            b_middle = (tl.arange(0, BINS) + 0.5) * (width / unit)
            b_amount *= tl.exp2((greatest - largest - b_middle) * LOG2E)
        b_reached = tl.cumsum(b_amount, 0) + above
        m_short = b_reached < wanted
        bin = tl.minimum(
            tl.sum(m_short.to(tl.int32), 0), _places(surely, greatest, scale, unit, BINS)
        )
        low, high = float("inf"), float("-inf")
        for first in range(0, BLOCK if WHOLE else row[4], BLOCK):
            b_x = block_at(row, b_held, first, GUIDED, BLOCK, WHOLE)
            b_place = _places(b_x, greatest, scale, unit, BINS)
            b_inside = tl.where(b_place == bin, b_x, float("nan"))  # which min and max ignore
            low, high = tl.minimum(low, tl.min(b_inside, 0)), tl.maximum(high, tl.max(b_inside, 0))
        low = tl.maximum(low, floor)
        if MASS:
            larger, reached = 0.0, 0.0
            for first in range(0, BLOCK if WHOLE else row[4], BLOCK):
                b_x = block_at(row, b_held, first, GUIDED, BLOCK, WHOLE)
                b_mass = _masses_from(b_x, floor, largest)
                larger += tl.sum(tl.where(b_x > high, b_mass, 0.0), 0)
                reached += tl.sum(tl.where(b_x >= low, b_mass, 0.0), 0)
            one_high = tl.exp2((high - largest) * LOG2E)
            one_low = tl.exp2((low - largest) * LOG2E)
        else:
            larger = tl.max(tl.where(m_short, b_reached, above), 0)
            reached = tl.min(tl.where(m_short, float("inf"), b_reached), 0)
            one_high, one_low = 1.0, 1.0
        if MASS and (larger >= wanted) & (high < greatest):
            least = _neighbour(row, b_held, high, True, GUIDED, BLOCK, WHOLE)
        elif MASS and (reached < wanted) & (low > surely):
            greatest = _neighbour(row, b_held, low, False, GUIDED, BLOCK, WHOLE)
            least, above = surely, reached
        else:
            # The answer is the largest of the bin, or the smallest, or neither.
            least = tl.where(larger + one_high >= wanted, high, low)
            greatest = tl.where(reached - one_low < wanted, least, high)
            above = larger
        surely = tl.maximum(surely, least)
    return greatest


@triton.jit
def filter_row(
    row, b_held, total, top_k, top_p, NUCLEUS: tl.constexpr,
    GUIDED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The smallest logit that top-k and top-p keep, and the largest; NaN for an invalid row.

    Invalid is a NaN or +inf logit, or no finite one.
    """
    largest, mean, deviation, count, bad = _statistics(row, b_held, total, GUIDED, BLOCK, WHOLE)
    valid = (bad == 0.0) & (count > 0.0)
    threshold = tl.where(valid, -FLOAT_MAX, float("nan"))  # NaN: nothing to search
    wanted = top_k - 0.5
    if (top_k > 0) & (wanted < count):
        tail = tl.minimum(wanted / count, 1.0 - wanted / count)
        # Standard normal quantile, to the few digits that a first guess needs.
        r = tl.sqrt(-2.0 * tl.log(tail))
        z = r - (2.30753 + 0.27061 * r) / (1.0 + 0.99229 * r + 0.04481 * r * r)
        z = tl.where(wanted + wanted < count, z, -z) - 0.25 - 0.5 / tl.sqrt(wanted)
        least = mean + deviation * z
        least = tl.where((least > threshold) & (least < largest), least, threshold)
        threshold = _select(
            row, b_held, least, largest, wanted, threshold, largest,
            False, GUIDED, BLOCK, WHOLE,
        )  # fmt: skip
    if (NUCLEUS | (top_k > 0)) & (threshold == -FLOAT_MAX):
        threshold = _neighbour(row, b_held, float("-inf"), True, GUIDED, BLOCK, WHOLE)
    if NUCLEUS:  # top_p is below 1
        mass = 0.0
        for first in range(0, BLOCK if WHOLE else row[4], BLOCK):
            b_x = block_at(row, b_held, first, GUIDED, BLOCK, WHOLE)
            mass += tl.sum(_masses_from(b_x, threshold, largest), 0)
        threshold = _select(
            row, b_held, tl.maximum(threshold, largest - _FAR), largest, top_p * mass, threshold,
            largest, True, GUIDED, BLOCK, WHOLE,
        )  # fmt: skip
    return tl.where(valid, threshold, float("nan")), largest


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
    b_held, total = held_block(row, GUIDED, BLOCK, WHOLE)
    threshold, largest = filter_row(row, b_held, total, top_k, top_p, NUCLEUS, GUIDED, BLOCK, WHOLE)
    tl.store(p_threshold + i_r, threshold)
    tl.store(p_largest + i_r, largest)


def row_layout(vocabulary: int) -> dict[str, int | bool]:
    """How a kernel with one block a row walks it: in registers where it fits, else streamed."""
    whole = vocabulary <= _LARGEST_BLOCK
    block = max(128, triton.next_power_of_2(vocabulary)) if whole else _STREAMED_BLOCK
    warps = max(1, min(4, block // 512), block // 1024)
    return {"BLOCK": block, "WHOLE": whole, "num_warps": warps}


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
