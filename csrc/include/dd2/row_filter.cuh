// The filters of every row ahead of the tensor-core kernel: one block a row.
#pragma once

#include "dd2/filter_row.cuh"
#include "dd2/split_codebook.cuh"

namespace dd2 {

DD2_DEVICE KeptRange kept_range(const RowFilter& filter) {
  return {filter.invalid ? quiet_nan() : filter.threshold, filter.largest};
}

// grid (rows), row_filter_threads; kStaged: for rows that fit in shared memory, where they are read
// once.
template <bool kStaged>
__global__ void __launch_bounds__(row_filter_threads(kStaged), 1024 / row_filter_threads(kStaged))
    row_filter_kernel(const ConditionalScoreParams p) {
  DD2_DYNAMIC_SHARED(float, staged);
  __shared__ Selection<row_filter_threads(kStaged)> selection;
  const GuidedRow<LogitType::kAny> row(p.teacher, blockIdx.x);
  const RowFilter filter = filter_row<kStaged>(row, p.teacher, staged, selection);
  if (threadIdx.x == 0) DenseWorkspace(p).kept[blockIdx.x] = kept_range(filter);
}

}  // namespace dd2
