// The codes that a row's filters keep, as one block visits them.
#pragma once

#include "dd2/filter_row.cuh"
#include "dd2/guided_row.cuh"

namespace dd2 {

// Compacted in shared memory, or all codes of the row.
struct KeptCodes {
  const float* staged;  // their indices, and their logits behind them if has_logits; null: codes
                        // 0, 1, ..., count - 1 whose logit is at least `threshold`
  bool has_logits;
  int count;
  float threshold;
  float largest;  // logit
  bool invalid;   // a NaN or +inf logit, or no code left

  DD2_DEVICE long long code(int i) const {
    return staged == nullptr ? i : __float_as_int(staged[i]);
  }

  // Calls visit(code, logit) for this thread's share, in ascending order of the codes.
  template <typename Row, typename Visit>
  DD2_DEVICE void for_each(const Row& row, const Visit& visit) const {
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const long long j = code(i);
      const float logit = has_logits ? staged[count + i] : row(j);
      if (!(logit >= threshold) || logit == negative_infinity()) continue;
      visit(j, logit);
    }
  }
};

// Filters a row; kStaged: over its guided logits in `staged` [vocabulary], which the kept codes'
// indices then replace.
template <bool kStaged, typename Row>
DD2_DEVICE KeptCodes keep_codes(const Row& row, const TeacherRows& p, float* staged,
                                Candidates& candidates) {
  if (kStaged) stage_row(row, p.vocabulary, staged);
  const RowFilter filter = kStaged ? filter_row(StagedRow{staged}, p, candidates)
                                   : filter_row(row, p, candidates);
  int count = static_cast<int>(p.vocabulary);
  if (kStaged && !filter.invalid) {
    // Indices overwrite logits that every thread has read: they never run ahead of the reads.
    count = 0;
    for (long long first = 0; first < p.vocabulary; first += kThreads) {
      const long long j = first + threadIdx.x;
      const bool keep =
          j < p.vocabulary && staged[j] >= filter.threshold && staged[j] > negative_infinity();
      const Position position = block_position(keep);
      if (keep) staged[count + position.index] = __int_as_float(static_cast<int>(j));
      count += position.total;
    }
    __syncthreads();
  }
  return {kStaged ? staged : nullptr, false, count, filter.threshold, filter.largest,
          filter.invalid};
}

// Puts the logits of compacted codes behind their indices, where at most half of the vocabulary is
// kept.
template <typename Row>
DD2_DEVICE bool keep_logits(const Row& row, long long vocabulary, float* staged, int count) {
  if (2 * count > vocabulary) return false;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    staged[count + i] = row(__float_as_int(staged[i]));
  }
  __syncthreads();
  return true;
}

}  // namespace dd2
