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

  // Calls visit(code, logit) for this thread's share.
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

// Overwrites a row's logits with the indices of those that are at least `threshold`, a number: how
// many they are. Neighbours of the row are not neighbours in what is left.
DD2_DEVICE int compact_codes(float* staged, int vocabulary, float threshold) {
  constexpr int kWords = 2, kFours = 8;  // bits that say what is kept, four for each four logits
  constexpr int kStep = 4 * kThreads;
  int count = 0;
  for (int first = 0; first < vocabulary; first += kWords * kFours * kStep) {
    const int mine = first + 4 * static_cast<int>(threadIdx.x);
    unsigned kept[kWords] = {};
    for (int w = 0; w < kWords; ++w) {
      for (int i = 0; i < kFours; ++i) {
        const int j = mine + (w * kFours + i) * kStep;
        if (j >= vocabulary) continue;
        const float4 v = *reinterpret_cast<const float4*>(staged + j);
        kept[w] |= (v.x >= threshold ? 1u << 4 * i : 0u) | (v.y >= threshold ? 2u << 4 * i : 0u) |
                   (v.z >= threshold ? 4u << 4 * i : 0u) | (v.w >= threshold ? 8u << 4 * i : 0u);
      }
    }
    // Once all have read them: indices overwrite logits that were read, they are no more than those.
    const Scan<int> scan = block_scan(__popc(kept[0]) + __popc(kept[1]));
    int next = count + scan.before;
    for (int w = 0; w < kWords; ++w) {
      for (unsigned left = kept[w]; left != 0; left &= left - 1) {
        const unsigned bit = static_cast<unsigned>(__ffs(static_cast<int>(left)) - 1);
        const unsigned code = mine + (w * kFours + bit / 4) * kStep + bit % 4;
        staged[next++] = __uint_as_float(code);
      }
    }
    count += scan.total;
  }
  __syncthreads();
  return count;
}

// Filters a row; kStaged: over its guided logits in `staged` [staged_floats], which the kept codes'
// indices then replace.
template <bool kStaged, typename Row>
DD2_DEVICE KeptCodes keep_codes(const Row& row, const TeacherRows& p, float* staged,
                                Selection& selection) {
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
