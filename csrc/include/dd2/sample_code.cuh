// One categorical draw a row on NVIDIA GPUs: one block a row, inverse CDF in code order.
//
// The row's logits are staged in shared memory where they fit, and its threshold found there. Then
// the CDF of masses in fixed point is inverted without being written: every thread weighs a share of
// the codes, in order, and the warp that finds the target among its shares weighs that one's codes.
// A row that does not fit is shared among warps, and the target's share again, until it is short.
#pragma once

#include "dd2/filter_share.cuh"
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

template <LogitType kType>
DD2_DEVICE TemperedRow<kType> tempered(const GuidedRow<kType>& row, float inverse_temperature) {
  return {row, inverse_temperature};
}

using MassSum = unsigned long long;

// What codes weigh in a draw: those that are kept their mass.
struct KeptMasses {
  float largest;
  float floor;

  DD2_DEVICE explicit KeptMasses(const RowFilter& filter)
      : largest(filter.largest),
        floor(Max()(filter.threshold, lowest_with_mass(filter.largest))) {}

  template <int kCount>
  DD2_DEVICE unsigned of(const Logits<kCount>& logits) const {
    unsigned sum = 0;
    for (const float logit : logits.value) add_where(sum, mass_of(logit - largest), logit, floor);
    return sum;
  }
};

// The target mass of a row whose masses are `total` in all, below it. Rounded, so that no compiler's
// choice moves a draw.
DD2_DEVICE MassSum target_of(double uniform, MassSum total) {
  return Min()(static_cast<MassSum>(__dmul_rn(uniform, static_cast<double>(total))), total - 1);
}

// Which of the first `lanes` lanes has the target among its weights, of which `up_to` is the scan;
// what the lanes before it weigh is taken off the target.
DD2_DEVICE int find_lane(MassSum weight, MassSum up_to, int lanes, MassSum& target) {
  const unsigned passed = __ballot_sync(kAllLanes, lane_index() < lanes && up_to <= target);
  const int lane = __popc(passed);
  target -= __shfl_sync(kAllLanes, up_to - weight, lane < kWarp ? lane : 0);
  return lane;
}

// The code of `begin`, ... that the target falls on, for the lane that finds it; -1 for the others of
// the warp.
template <typename Row>
DD2_DEVICE int find_code(const Row& row, int begin, int vocabulary, const KeptMasses& masses,
                         MassSum target) {
  for (int j = begin + lane_index();; j += kWarp) {
    const MassSum mass = j < vocabulary ? masses.of(Logits<1>{{row(j)}}) : 0u;
    const MassSum up_to = warp_scan(mass, kWarp);
    const MassSum all = __shfl_sync(kAllLanes, up_to, kWarp - 1);
    if (all > target) return up_to > target && up_to - mass <= target ? j : -1;
    target -= all;
  }
}

// The first code whose running mass exceeds uniform * total mass, for the thread that finds it; -1
// for the others. `uniform` is in shared memory; shares have all codes that are kept.
template <int kBlock, typename Row>
DD2_DEVICE int draw_code(const Row& row, const RowShare<kBlock>& share, int vocabulary,
                         const RowFilter& filter, const double& uniform) {
  constexpr int kWarps = kBlock / kWarp;
  __shared__ MassSum parts[kWarps];
  const KeptMasses masses(filter);
  MassSum sum = 0;
  for_each_logits<kBlock>(share, 0, [&](const auto& logits) { sum += masses.of(logits); });
  const MassSum up_to = warp_scan(sum, kWarp);
  if (lane_index() == kWarp - 1) parts[warp_index()] = up_to;
  __syncthreads();
  const MassSum part = parts[threadIdx.x % kWarps], parts_up_to = warp_scan(part, kWarps);
  const MassSum total = __shfl_sync(kAllLanes, parts_up_to, kWarps - 1);
  MassSum target = target_of(uniform, total);
  if (find_lane(part, parts_up_to, kWarps, target) != warp_index()) return -1;
  const int lane = find_lane(sum, up_to, kWarp, target);
  const int first = 4 * share.most(vocabulary) * (warp_index() * kWarp + lane);
  return find_code(row, first, vocabulary, masses, target);
}

// Likewise of a row in memory, which warps read side by side.
template <int kBlock, typename Row>
DD2_DEVICE int draw_code(const Row& row, int vocabulary, const RowFilter& filter,
                         const double& uniform) {
  constexpr int kWarps = kBlock / kWarp;
  __shared__ MassSum parts[kWarps];
  const KeptMasses masses(filter);
  MassSum target = 0;
  int begin = 0, end = vocabulary;
  do {
    const int share = (end - begin + kWarps - 1) / kWarps, own = begin + warp_index() * share;
    MassSum sum = 0;
    for (int j = own + lane_index(); j < own + share && j < end; j += kWarp) {
      sum += masses.of(Logits<1>{{row(j)}});
    }
    sum = warp_reduce(sum, Add());
    __syncthreads();
    if (lane_index() == 0) parts[warp_index()] = sum;
    __syncthreads();
    const MassSum part = parts[threadIdx.x % kWarps], up_to = warp_scan(part, kWarps);
    if (end - begin == vocabulary) {
      target = target_of(uniform, __shfl_sync(kAllLanes, up_to, kWarps - 1));
    }
    begin += find_lane(part, up_to, kWarps, target) * share;
    end = begin + share < end ? begin + share : end;
  } while (end - begin > kWarp);
  return warp_index() == 0 ? find_code(row, begin, vocabulary, masses, target) : -1;
}

// grid (rows). kStaged: the row, of LogitType::kAny, fits in shared memory, staged_floats. The blocks
// of a multiprocessor leave 64 registers a thread, which the streaming variants need not to spill.
template <LogitType kType, int kBlock, bool kStaged>
__global__ void __launch_bounds__(kBlock, 1024 / kBlock)
    sample_code_fwd_kernel(const SampleCodeParams p) {
  DD2_DYNAMIC_SHARED(float, staged);
  __shared__ Selection<kBlock> selection;
  __shared__ double uniform;
  const long long row_index = blockIdx.x;
  const int vocabulary = static_cast<int>(p.teacher.vocabulary);
  if (threadIdx.x == 0) {
    const long long counter = p.index != nullptr ? p.index[row_index] : row_index;
    uniform = row_uniform(p.seed[row_index * p.seed_stride], counter, kSampleStream);
  }
  selection.clear();
  int code = -1;
  RowFilter filter;
  if constexpr (kStaged) {
    const GuidedRow<LogitType::kAny> row(p.teacher, row_index);
    const auto with_row = [&](const auto& use) {
      return row.with_type([&](const auto& typed) {
        return use(tempered(typed, p.inverse_temperature));
      });
    };
    RowShare<kBlock> share(staged, vocabulary);
    filter = filter_staged(with_row, p.teacher, staged, share, selection);
    if (!filter.invalid) {
      code = with_row([&](const auto& row) {
        return draw_code<kBlock>(row, share, vocabulary, filter, uniform);
      });
    }
  } else {
    const TemperedRow<kType> row{GuidedRow<kType>(p.teacher, row_index), p.inverse_temperature};
    filter = filter_summarized(row, p.teacher, summarize<kBlock, false>(row, vocabulary, nullptr),
                               selection);
    if (!filter.invalid) code = draw_code<kBlock>(row, vocabulary, filter, uniform);
  }
  if (code >= 0 || (filter.invalid && threadIdx.x == 0)) p.out[row_index] = code;
}

}  // namespace dd2
