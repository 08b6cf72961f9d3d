// The conditional score of the few tokens that the tensor-core kernel leaves out, by the
// differences of conditional_score.cuh.
#pragma once

#include "dd2/conditional_score.cuh"
#include "dd2/dense_products.cuh"
#include "dd2/row_filter.cuh"

namespace dd2 {

// Of a row without filters, which row_filter_kernel has not seen.
template <typename Row>
DD2_DEVICE KeptRange unfiltered_range(const Row& row, const TeacherRows& p) {
  const RowSummary summary = summarize<kThreads, false>(row, static_cast<int>(p.vocabulary), nullptr);
  return kept_range({summary.largest, negative_infinity(), summary.invalid});
}

// grid (any): block b looks at tokens b, b + gridDim.x, ... and solves those that need it.
template <int kDim, bool kJacobian>
__global__ void __launch_bounds__(kThreads, kDim <= 8 ? 2 : 1)
    direct_score_fwd_kernel(const ConditionalScoreParams p) {
  DD2_DYNAMIC_SHARED(float, dynamic);
  const TokenVectors shared(dynamic, padded_dim<kDim>(p));
  __shared__ BlockSums<kDim, kJacobian> sums;
  __shared__ long long wanted[kThreads];
  const long long count = p.teacher.rows * p.draws;
  const long long stride = static_cast<long long>(gridDim.x) * kThreads;
  for (long long first = blockIdx.x; first < count; first += stride) {
    const long long mine = first + static_cast<long long>(threadIdx.x) * gridDim.x;
    const bool want = mine < count && needs_direct(p, mine);
    const Position position = block_position(want);
    if (want) wanted[position.index] = mine;
    __syncthreads();
    for (int i = 0; i < position.total; ++i) {
      const long long token = wanted[i], row_index = token / p.draws;
      const GuidedRow<LogitType::kAny> row(p.teacher, row_index);
      const KeptRange range = p.teacher.filtered()
                                  ? DenseWorkspace(p).kept[row_index]
                                  : unfiltered_range(row, p.teacher);
      KeptCodes kept{};
      kept.count = static_cast<int>(p.teacher.vocabulary);
      kept.logits = -1;
      kept.floor = kept_floor(range.threshold);
      kept.largest = range.largest;
      solve_token<kDim, kJacobian>(p, row, kept, token, sums, shared);
    }
    __syncthreads();
  }
}

}  // namespace dd2
