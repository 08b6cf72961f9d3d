// One categorical draw a row on NVIDIA GPUs: one block a row, inverse CDF in code order.
//
// The row's logits are staged in shared memory where they fit, and its threshold found there. Then
// the CDF of masses in fixed point is inverted without being written: each warp weighs an eighth of
// the row, and in the eighth that holds the target every thread weighs its share of the codes.
#pragma once

#include "dd2/filter_row.cuh"
#include "dd2/philox.cuh"
#include "dd2/sample_code.h"

namespace dd2 {

template <LogitType kType>
struct TemperedRow {
  GuidedRow<kType> row;
  float inverse_temperature;

  // Rounded, as staged: fused with what follows it would differ from what the threshold saw.
  DD2_DEVICE float operator()(long long j) const { return __fmul_rn(row(j), inverse_temperature); }

  DD2_DEVICE bool is_guided() const { return row.is_guided(); }
  DD2_DEVICE bool has_fours(int vocabulary) const { return row.has_fours(vocabulary); }
  template <bool kGuided>
  DD2_DEVICE auto load_four(int i) const {
    return row.template load_four<kGuided>(i);
  }
  template <bool kGuided>
  DD2_DEVICE Logits<4> guide(const typename GuidedRow<kType>::Four& four) const {
    Logits<4> logits = row.template guide<kGuided>(four);
    for (float& value : logits.value) value = __fmul_rn(value, inverse_temperature);
    return logits;
  }
};

// Calls visit(logits), of Logits, for this lane's share of logits begin, ..., end - 1 of a row; begin
// is a multiple of 4, and so is an end inside the row.
template <typename Row, typename Visit>
DD2_DEVICE void for_each_of_warp(const Row& row, int begin, int end, const Visit& visit) {
  for (int j = begin + lane_index(); j < end; j += kWarp) visit(Logits<1>{{row(j)}});
}

template <typename Visit>
DD2_DEVICE void for_each_of_warp(const StagedRow& row, int begin, int end, const Visit& visit) {
  DD2_UNROLL(kLoadsAhead)
  for (int j = begin + 4 * lane_index(); j < end; j += 4 * kWarp) {
    const float4 v = *reinterpret_cast<const float4*>(row.guided + j);
    visit(Logits<4>{{v.x, v.y, v.z, v.w}});
  }
}

// The first code whose running mass exceeds uniform * total mass, for the thread that finds it; -1
// for the others. `uniform` is in shared memory.
template <typename Row>
DD2_DEVICE int draw_code(const Row& row, int vocabulary, const RowFilter& filter,
                         const double& uniform) {
  using Sum = unsigned long long;
  __shared__ Sum parts[kWarps];
  const float floor = Max()(filter.threshold, lowest_with_mass(filter.largest));
  const auto mass = [&](float logit) {
    return logit >= floor ? mass_of(logit - filter.largest) : 0u;
  };
  const int share = (vocabulary + 4 * kThreads - 1) / (4 * kThreads) * (4 * kWarp);
  const int begin = warp_index() * share;
  const int end = begin + share < vocabulary ? begin + share : vocabulary;
  Sum sum = 0;
  for_each_of_warp(row, begin, end, [&](const auto& logits) {
    unsigned some = 0;
    for (const float logit : logits.value) some += mass(logit);
    sum += some;
  });
  sum = warp_reduce(sum, Add());
  if (lane_index() == 0) parts[warp_index()] = sum;
  __syncthreads();
  const Sum part = parts[lane_index() % kWarps], up_to = warp_scan(part, kWarps);
  const Sum total = __shfl_sync(kAllLanes, up_to, kWarps - 1);
  // Rounded, so that no compiler's choice moves a draw.
  Sum target = static_cast<Sum>(__dmul_rn(uniform, static_cast<double>(total)));
  target = Min()(target, total - 1);
  const unsigned passed = __ballot_sync(kAllLanes, lane_index() < kWarps && up_to <= target);
  target -= __shfl_sync(kAllLanes, up_to - part, __popc(passed));
  const int first = __popc(passed) * share;
  const int own = share / kThreads + (share % kThreads != 0);
  const int mine = first + own * static_cast<int>(threadIdx.x);
  const auto is_mine = [&](int j) {
    return j < mine + own && j < first + share && j < vocabulary;
  };
  sum = 0;
  for (int j = mine; is_mine(j); ++j) sum += mass(row(j));
  const Scan<Sum> scan = block_scan(sum);
  if (target < scan.before || target - scan.before >= sum) return -1;
  target -= scan.before;
  for (int j = mine;; ++j) {
    const unsigned m = mass(row(j));
    if (target < m) return j;
    target -= m;
  }
}

// grid (rows); kStaged: the row fits in shared memory, staged_floats. Four blocks a
// multiprocessor leave the 64 registers that the streaming variants need not to spill.
template <LogitType kType, bool kStaged>
__global__ void __launch_bounds__(kThreads, 4) sample_code_fwd_kernel(const SampleCodeParams p) {
  DD2_DYNAMIC_SHARED(float, staged);
  __shared__ Selection selection;
  __shared__ double uniform;
  const long long row_index = blockIdx.x;
  const int vocabulary = static_cast<int>(p.teacher.vocabulary);
  const TemperedRow<kType> row{GuidedRow<kType>(p.teacher, row_index), p.inverse_temperature};
  if (threadIdx.x == 0) {
    const long long counter = p.index != nullptr ? p.index[row_index] : row_index;
    uniform = row_uniform(p.seed[row_index * p.seed_stride], counter, kSampleStream);
  }
  const RowFilter filter = filter_row<kStaged>(row, p.teacher, staged, selection);
  if (filter.invalid) {
    if (threadIdx.x == 0) p.out[row_index] = -1;
    return;
  }
  int code;
  if constexpr (kStaged) {
    code = draw_code(StagedRow{staged}, vocabulary, filter, uniform);
  } else {
    code = draw_code(row, vocabulary, filter, uniform);
  }
  if (code >= 0) p.out[row_index] = code;
}

}  // namespace dd2
