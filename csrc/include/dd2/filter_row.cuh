// The filters of a teacher's row by one block: what is valid, and the smallest logit kept.
#pragma once

#include "dd2/guided_row.cuh"
#include "dd2/row_threshold.cuh"
#include "dd2/teacher_rows.h"

namespace dd2 {

// Sums over the finite logits of a row.
struct RowSums {
  float largest;
  float sum;
  float square;

  DD2_DEVICE void clear() {
    largest = negative_infinity();
    sum = square = 0.0f;
  }
  DD2_DEVICE void add(float logit) {
    largest = fmaxf(logit, largest);
    sum += logit;
    square = fused_multiply_add(logit, logit, square);
  }

  // Those of the block.
  template <int kBlock>
  DD2_DEVICE RowSums reduce() const {
    constexpr int kWarps = kBlock / kWarp;
    __shared__ float4 partial[kWarps];
    const float4 mine = make_float4(warp_reduce(largest, FloatMax()), warp_reduce(sum, Add()),
                                    warp_reduce(square, Add()), 0.0f);
    __syncthreads();
    if (lane_index() == 0) partial[warp_index()] = mine;
    __syncthreads();
    RowSums total;
    total.clear();
    for (int w = 0; w < kWarps; ++w) {
      const float4 v = partial[w];
      total.largest = fmaxf(v.x, total.largest);
      total.sum += v.y;
      total.square += v.z;
    }
    return total;
  }
};

DD2_DEVICE RowSummary summary_of(const RowSums& sums, int finite, bool invalid) {
  const float inverse = __fdividef(1.0f, static_cast<float>(finite));
  const float mean = sums.sum * inverse;
  const float variance = fused_multiply_add(-mean, mean, sums.square * inverse);
  return {sums.largest, mean, variance > 0.0f ? variance * rsqrtf(variance) : 0.0f, finite,
          invalid};
}

// Sums a row of fours, and stages it, without a look at any logit: right where all are finite.
template <int kBlock, bool kStaged, bool kGuided, typename Row>
DD2_DEVICE void sum_fours(const Row& row, int vocabulary, float* staged, RowSums& sums) {
  for_each_loaded<kBlock>(
      vocabulary / 4, [&](int i) { return row.template load_four<kGuided>(i); },
      [&](const auto& four, int i) {
        const Logits<4> logits = row.template guide<kGuided>(four);
        const float(&v)[4] = logits.value;
        if (kStaged) reinterpret_cast<float4*>(staged)[i] = make_float4(v[0], v[1], v[2], v[3]);
        for (int n = 0; n < 4; ++n) sums.add(v[n]);
      });
}

// Likewise, if the row can be read so.
template <int kBlock, bool kStaged, typename Row>
DD2_DEVICE bool try_fours(const Row& row, int vocabulary, float* staged, RowSums& sums) {
  if (!row.has_fours(vocabulary)) return false;
  row.is_guided() ? sum_fours<kBlock, kStaged, true>(row, vocabulary, staged, sums)
                  : sum_fours<kBlock, kStaged, false>(row, vocabulary, staged, sums);
  return true;
}

template <int kBlock, bool kStaged>
DD2_DEVICE bool try_fours(const GuidedRow<LogitType::kAny>& row, int vocabulary, float* staged,
                          RowSums& sums) {
  return row.with_type(
      [&](const auto& typed) { return try_fours<kBlock, kStaged>(typed, vocabulary, staged, sums); });
}

// Reads a row, to `staged` too if kStaged. The sum of squares says whether all logits are finite; if
// not, it is read once more.
template <int kBlock, bool kStaged, typename Row>
DD2_DEVICE RowSummary summarize(const Row& row, int vocabulary, float* staged) {
  RowSums sums;
  sums.clear();
  if (try_fours<kBlock, kStaged>(row, vocabulary, staged, sums)) {
    const RowSums total = sums.reduce<kBlock>();
    if (total.square <= kFloatMax) return summary_of(total, vocabulary, false);
    sums.clear();
  }
  int finite = 0, bad = 0;
  for_each_loaded<kBlock>(
      vocabulary, [&](int j) { return row(j); },
      [&](float logit, int j) {
        if (kStaged) staged[j] = logit;
        if (!(logit <= kFloatMax)) bad = 1;
        if (logit > negative_infinity()) {
          ++finite;
          sums.add(logit);
        }
      });
  if (kStaged) {
    const int j = vocabulary + static_cast<int>(threadIdx.x);
    if (j < (vocabulary + 3) / 4 * 4) staged[j] = negative_infinity();
  }
  const RowSums total = sums.reduce<kBlock>();
  finite = block_sum<kBlock>(finite);
  const bool invalid = block_sum<kBlock>(bad) != 0 || finite == 0;
  return summary_of(total, finite, invalid);
}

struct RowFilter {
  float largest;    // logit
  float threshold;  // a code is kept iff its logit is at least this, and not -inf
  bool invalid;     // a NaN or +inf logit, or no code left
};

// Of a row whose summary this is; a selection that was cleared before a barrier.
template <int kBlock, typename Row>
DD2_DEVICE RowFilter filter_summarized(const Row& row, const TeacherRows& p,
                                       const RowSummary& summary, Selection<kBlock>& selection) {
  const int vocabulary = static_cast<int>(p.vocabulary);
  RowFilter filter{summary.largest, negative_infinity(), summary.invalid};
  if (summary.invalid) return filter;
  if (p.top_k > 0 && p.top_k < summary.finite) {
    filter.threshold =
        row_kth_largest(row, vocabulary, static_cast<int>(p.top_k), summary, selection);
  }
  if (p.top_p < 1.0f) {
    filter.threshold =
        row_nucleus(row, vocabulary, filter.threshold, p.top_p, filter.largest, selection);
  }
  return filter;
}

// kStaged: over the row's logits in `staged` [staged_floats], which it fills.
template <bool kStaged, int kBlock, typename Row>
DD2_DEVICE RowFilter filter_row(const Row& row, const TeacherRows& p, float* staged,
                                Selection<kBlock>& selection) {
  selection.clear();
  const RowSummary summary =
      summarize<kBlock, kStaged>(row, static_cast<int>(p.vocabulary), staged);
  if constexpr (kStaged) {
    return filter_summarized(StagedRow{staged}, p, summary, selection);
  } else {
    return filter_summarized(row, p, summary, selection);
  }
}

}  // namespace dd2
