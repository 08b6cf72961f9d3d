// The filters of every row ahead of the tensor-core kernel: one block a row.
#pragma once

#include "dd2/filter_share.cuh"
#include "dd2/split_codebook.cuh"

namespace dd2 {

DD2_DEVICE KeptRange kept_range(const RowFilter& filter) {
  return {filter.invalid ? quiet_nan() : filter.threshold, filter.largest};
}

// grid (rows); kStaged: for rows that fit in shared memory, where they are read once.
template <int kBlock, bool kStaged>
__global__ void __launch_bounds__(kBlock, 1024 / kBlock)
    row_filter_kernel(const ConditionalScoreParams p) {
  DD2_DYNAMIC_SHARED(float, staged);
  __shared__ Selection<kBlock> selection;
  const GuidedRow<LogitType::kAny> row(p.teacher, blockIdx.x);
  RowFilter filter;
  if constexpr (kStaged) {
    selection.clear();
    RowShare<kBlock> share(staged, static_cast<int>(p.teacher.vocabulary));
    const auto with_row = [&](const auto& use) { return row.with_type(use); };
    filter = filter_staged(with_row, p.teacher, staged, share, selection);
  } else {
    filter = filter_row<false>(row, p.teacher, staged, selection);
  }
  if (threadIdx.x == 0) DenseWorkspace(p).kept[blockIdx.x] = kept_range(filter);
}

}  // namespace dd2
