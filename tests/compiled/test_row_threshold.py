"""The selections of row_threshold.cuh and filter_share.cuh over adversarial rows, against a sort in
float64."""

from __future__ import annotations

import functools
import math

import numpy as np
import ptxrun
import pytest
import torch
from native.compilers import require_nvrtc
from ops.oracle import kept_codes
from torch import Tensor

from dd2_fast.ops import nvrtc
from dd2_fast.ops.structs import TeacherRows

# The smallest logit that every row of float32 logits keeps, NaN of an invalid one.
SOURCE = """
#include "dd2/filter_share.cuh"
using namespace dd2;
template <bool kStaged, bool kShares, int kBlock>
__global__ void threshold_kernel(TeacherRows p, float* out) {
  DD2_DYNAMIC_SHARED(float, staged);
  __shared__ Selection<kBlock> selection;
  const GuidedRow<LogitType::kFloat32> row(p, blockIdx.x);
  RowFilter filter;
  if constexpr (kShares) {
    selection.clear();
    RowShare<kBlock> share(staged, static_cast<int>(p.vocabulary));
    const auto with_row = [&](const auto& use) { return use(row); };
    filter = filter_staged(with_row, p, staged, share, selection);
  } else {
    filter = filter_row<kStaged>(row, p, staged, selection);
  }
  if (threadIdx.x == 0) out[blockIdx.x] = filter.invalid ? quiet_nan() : filter.threshold;
}
"""
TINY = 1e-45  # the smallest float
SIZE = 300  # more than a block's threads


def row(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(SIZE, generator=generator)
    if name == "equal":
        return torch.full((SIZE,), -3.25)
    if name == "two_values":
        return torch.where(normal > 0.5, 1.0, 0.75)
    if name == "one_left":
        return torch.full((SIZE,), -torch.inf).index_fill(0, torch.tensor([137]), 2.0)
    if name == "denormals":
        return torch.arange(SIZE) % 40 * TINY
    if name == "zeros":
        return torch.where(normal > 0, 0.0, -0.0).index_fill(0, torch.tensor([5]), 1.0)
    if name == "ties_at_the_threshold":
        return torch.where(normal > 1, 2.0, torch.where(normal > -1, 1.0, normal))
    if name == "neighbours":
        return (0x3F800000 + torch.arange(SIZE) % 200).int().view(torch.float32)
    if name == "powers":  # each bin of a value's range splits one off
        return 2.0 ** (-(torch.arange(SIZE) % 140)).float()
    if name == "far_apart":
        return normal.index_fill(0, torch.tensor([3]), -3e38).index_fill(0, torch.tensor([9]), 3e38)
    if name == "unbounded":  # whose squares overflow
        return normal.index_fill(0, torch.tensor([3]), 300.0).index_fill(
            0, torch.tensor([9]), -1e30
        )
    if name == "lowest":
        return torch.full((SIZE,), -3.4028234663852886e38)
    assert name == "normal"
    return 2 * normal


ROWS = [
    "equal", "two_values", "one_left", "denormals", "zeros", "ties_at_the_threshold", "neighbours",
    "powers", "far_apart", "unbounded", "lowest", "normal",
]  # fmt: skip
FILTERS = [
    (1, 1.0), (60, 1.0), (200, 1.0), (SIZE - 1, 1.0), (SIZE, 1.0), (SIZE + 9, 0.9),
    (0, 0.5), (0, 1 - 2.0**-24), (60, 0.7), (0, 1e-6),
]  # fmt: skip


@functools.cache
def kernel(staged: bool, shares: bool, threads: int) -> ptxrun.Function:
    name = f"threshold_kernel<{str(staged).lower()}, {str(shares).lower()}, {threads}>"
    compiled = nvrtc.compile_program(SOURCE, [name], "compute_90a", ["-lineinfo"])
    return ptxrun.load(compiled.image).function(compiled.symbols[0])


def thresholds(
    logits: Tensor, top_k: int, top_p: float, staged: bool, shares: bool, threads: int = 256
) -> Tensor:
    require_nvrtc()
    out, scale = np.full(len(logits), -7.0, np.float32), torch.ones(len(logits))
    rows = TeacherRows(
        logits=logits.data_ptr(),
        scale=scale.data_ptr(),
        logits_stride=logits.stride(0),
        rows=logits.shape[0],
        vocabulary=logits.shape[1],
        top_k=top_k,
        top_p=top_p,
    )
    memory = [(t.data_ptr(), t.numel() * t.element_size()) for t in (logits, scale)]
    shared = 16 * -(-logits.shape[1] // 4) if staged else 0
    function, arguments = kernel(staged, shares, threads), [bytes(rows), out]
    function.launch((len(logits),), (threads,), arguments, shared=shared, memory=memory)
    return torch.from_numpy(out)


@pytest.mark.parametrize(
    ("staged", "shares", "threads"),
    [
        (True, False, 64), (True, False, 256), (False, False, 256), (True, True, 64),
        (True, True, 256),
    ],
    ids=["staged by few", "staged", "streamed", "shares of few", "shares"],
)  # fmt: skip
@pytest.mark.parametrize("size", [SIZE, SIZE + 3])
def test_kept_codes_are_those_of_a_sort(
    size: int, staged: bool, shares: bool, threads: int
) -> None:
    """Rows that are read four at a time, and one by one."""
    logits = torch.stack([row(name) for name in ROWS])
    logits = torch.cat([logits, logits[:, 1 : size - SIZE + 1]], 1)
    for top_k, top_p in FILTERS:
        found = thresholds(logits, top_k, top_p, staged, shares, threads)
        for name, values, threshold in zip(ROWS, logits, found, strict=True):
            kept = (values >= threshold) & (values > -torch.inf)
            wanted = torch.from_numpy(kept_codes(values.double().numpy(), top_k, top_p))
            assert torch.equal(kept, wanted), (name, top_k, top_p, threshold.item())


@pytest.mark.parametrize("shares", [False, True])
def test_a_nan_makes_a_row_invalid(shares: bool) -> None:
    logits = torch.stack([row("normal")] * 3)
    logits[1, SIZE - 1] = math.nan
    logits[2, 7] = math.inf
    found = thresholds(logits, 7, 0.5, True, shares)
    assert found.isnan().tolist() == [False, True, True]
