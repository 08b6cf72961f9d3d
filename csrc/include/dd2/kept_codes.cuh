// The codes that a row's filters keep, as one block visits them.
#pragma once

#include "dd2/filter_row.cuh"

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

  // Whether the i-th is kept, and its logit.
  template <typename Row>
  DD2_DEVICE bool read(const Row& row, int i, long long& j, float& logit) const {
    if (i >= count) return false;
    j = code(i);
    logit = has_logits ? staged[count + i] : row(j);
    return logit >= threshold && logit > negative_infinity();
  }

  // Calls visit(code) for this thread's share.
  template <typename Row, typename Visit>
  DD2_DEVICE void for_each(const Row& row, const Visit& visit) const {
    for (int i = threadIdx.x; i < count; i += kThreads) {
      long long j = 0;
      float logit = 0.0f;
      if (read(row, i, j, logit)) visit(j);
    }
  }
};

// Overwrites a row's logits with the indices of those that are at least `threshold`, a number: how
// many they are. Neighbours of the row are not neighbours in what is left.
DD2_DEVICE int compact_codes(float* staged, int vocabulary, float threshold) {
  constexpr int kWords = 2, kFours = 8;  // a thread's logits at a time: words of 32
  constexpr int kStep = 4 * kThreads;
  // The sign of a difference from -0 is that of the comparison for both zeros.
  const float floor = threshold == 0.0f ? -0.0f : threshold;
  int count = 0;
  for (int first = 0; first < vocabulary; first += kWords * kFours * kStep) {
    const int mine = first + 4 * static_cast<int>(threadIdx.x);
    unsigned dropped[kWords] = {};  // the first logit's is the highest bit
    for (int w = 0; w < kWords; ++w) {
      for (int i = 0; i < kFours; ++i) {
        const int j = mine + (w * kFours + i) * kStep;
        if (j >= vocabulary) {
          dropped[w] = dropped[w] << 4 | 15u;
          continue;
        }
        const float4 v = *reinterpret_cast<const float4*>(staged + j);
        const float logits[4] = {v.x, v.y, v.z, v.w};
        for (const float logit : logits) {
          dropped[w] = __funnelshift_l(__float_as_uint(logit - floor), dropped[w], 1);
        }
      }
    }
    // Once all have read them: indices overwrite logits that were read, they are no more than those.
    const Scan<unsigned> scan =
        block_scan(static_cast<unsigned>(__popc(~dropped[0]) + __popc(~dropped[1])));
    int next = count + static_cast<int>(scan.before);
    for (int w = 0; w < kWords; ++w) {
      for (unsigned kept = ~dropped[w]; kept != 0;) {
        const unsigned n = static_cast<unsigned>(__clz(static_cast<int>(kept)));
        kept ^= 0x80000000u >> n;
        staged[next++] = __uint_as_float(mine + (w * kFours + n / 4) * kStep + n % 4);
      }
    }
    count += static_cast<int>(scan.total);
  }
  __syncthreads();
  return count;
}

// Filters a row; kStaged: over its guided logits in `staged` [staged_floats], which the kept codes'
// indices then replace.
template <bool kStaged, typename Row>
DD2_DEVICE KeptCodes keep_codes(const Row& row, const TeacherRows& p, float* staged,
                                Selection<kThreads>& selection) {
  const RowFilter filter = filter_row<kStaged>(row, p, staged, selection);
  int count = static_cast<int>(p.vocabulary);
  if (kStaged && !filter.invalid) {
    count = compact_codes(staged, count, Max()(filter.threshold, -kFloatMax));
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
