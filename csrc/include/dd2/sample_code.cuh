// One categorical draw a row on NVIDIA GPUs: one block a row, inverse CDF in code order.
//
// The row's logits are staged in shared memory where they fit, and its threshold found there. Then
// the CDF is inverted without being written: the warps weigh eighths of the row, the eighth that
// holds the target is split again, until one warp's width of codes is left.
#pragma once

#include "dd2/filter_row.cuh"
#include "dd2/guided_row.cuh"
#include "dd2/philox.cuh"
#include "dd2/sample_code.h"

namespace dd2 {

template <LogitType kType>
struct TemperedRow {
  static constexpr int kUnroll = GuidedRow<kType>::kUnroll;

  GuidedRow<kType> row;
  float inverse_temperature;
  // Rounded, as staged: fused with what follows it would differ from what the threshold saw.
  DD2_DEVICE float operator()(long long j) const { return __fmul_rn(row(j), inverse_temperature); }
};

// The first code whose running mass exceeds uniform * total mass. Sums are in double precision;
// where two orders of summation disagree on the last bit, the last code with mass is taken.
template <typename Row>
DD2_DEVICE long long draw_code(const Row& row, long long vocabulary, const RowFilter& filter,
                               double uniform) {
  __shared__ double parts[kWarps];
  const auto mass = [&](long long j) {
    const float value = row(j);
    const bool kept = value >= filter.threshold && value > negative_infinity();
    return kept ? exp2f((value - filter.largest) * kLog2E) : 0.0f;
  };
  long long first = 0, last = vocabulary;
  double target = -1.0;  // mass beyond `first`; unknown until the whole row is weighed
  do {
    const long long share = (last - first + kThreads - 1) / kThreads * kWarp;
    const long long begin = first + warp_index() * share;
    const long long end = begin + share < last ? begin + share : last;
    double sum = 0.0;
    for (long long j = begin + lane_index(); j < end; j += kWarp) sum += mass(j);
    sum = warp_reduce(sum, Add());
    __syncthreads();
    if (lane_index() == 0) parts[warp_index()] = sum;
    __syncthreads();
    if (target < 0.0) {
      double total = 0.0;
      for (int w = 0; w < kWarps; ++w) total += parts[w];
      // Rounded: fused with the subtraction below, it could come out negative, as if unknown.
      target = __dmul_rn(uniform, total);
    }
    int chosen = 0;
    double below = 0.0, below_chosen = 0.0;
    for (int w = 0; w < kWarps && below <= target; ++w) {
      if (parts[w] > 0.0) {
        chosen = w;
        below_chosen = below;
      }
      below += parts[w];
    }
    target -= below_chosen;
    first += chosen * share;
    last = first + share < last ? first + share : last;
  } while (last - first > kWarp);
  long long code = first;
  double sum = 0.0;
  for (long long j = first; j < last && sum <= target; ++j) {
    const float m = mass(j);
    if (m > 0.0f) code = j;
    sum += m;
  }
  return code;
}

// grid (rows); kStaged: the row fits in shared memory, vocabulary floats. Four blocks a
// multiprocessor leave the 64 registers that the streaming variants need not to spill.
template <LogitType kType, bool kStaged>
__global__ void __launch_bounds__(kThreads, 4) sample_code_fwd_kernel(const SampleCodeParams p) {
  DD2_DYNAMIC_SHARED(float, staged);
  __shared__ Candidates candidates;
  const long long row_index = blockIdx.x, vocabulary = p.teacher.vocabulary;
  const TemperedRow<kType> row{GuidedRow<kType>(p.teacher, row_index), p.inverse_temperature};
  const auto draw = [&](const auto& source) {
    const RowFilter filter = filter_row(source, p.teacher, candidates);
    const long long counter = p.index != nullptr ? p.index[row_index] : row_index;
    const double uniform = row_uniform(*p.seed, counter, kSampleStream);
    const long long code =
        filter.invalid ? -1 : draw_code(source, vocabulary, filter, uniform);
    if (threadIdx.x == 0) p.out[row_index] = code;
  };
  if (kStaged) {
    stage_row(row, vocabulary, staged);
    draw(StagedRow{staged});
  } else {
    draw(row);
  }
}

}  // namespace dd2
