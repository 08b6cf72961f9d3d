// The codes that a row's filters keep, as one block visits them.
#pragma once

#include "dd2/filter_row.cuh"

namespace dd2 {

// Compacted in shared memory, or all codes of the row.
struct KeptCodes {
  const float* staged;  // in shared memory, if anything is there
  bool compacted;  // their indices are there; else codes 0, 1, ..., count - 1 whose logit is at least
                   // `floor`
  int logits;      // where their logits begin there; -1: those of the row
  int count;
  float floor;    // above -inf
  float largest;  // logit
  bool invalid;   // a NaN or +inf logit, or no code left

  DD2_DEVICE int code(int i) const { return compacted ? __float_as_int(staged[i]) : i; }

  // Whether the i-th is kept, and its logit.
  template <typename Row>
  DD2_DEVICE bool read(const Row& row, int i, int& j, float& logit) const {
    if (i >= count) return false;
    j = code(i);
    logit = logits >= 0 ? staged[logits + i] : row(j);
    return logit >= floor;
  }

  // Calls visit(code) for this thread's share.
  template <typename Row, typename Visit>
  DD2_DEVICE void for_each(const Row& row, const Visit& visit) const {
    for (int i = threadIdx.x; i < count; i += kThreads) {
      int j = 0;
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

// A threshold that rules out -inf; NaN of NaN.
DD2_DEVICE float kept_floor(float threshold) { return Max()(-kFloatMax, threshold); }

// Filters a row; kStaged: over its guided logits in `staged` [staged_floats], which stay there if
// nothing filters them; else the kept codes' indices replace them.
template <bool kStaged>
DD2_DEVICE KeptCodes keep_codes(const GuidedRow<LogitType::kAny>& row, const TeacherRows& p,
                                float* staged, Selection<kThreads>& selection) {
  const RowFilter filter = filter_row<kStaged>(row, p, staged, selection);
  KeptCodes kept{staged, false, -1, static_cast<int>(p.vocabulary), kept_floor(filter.threshold),
                 filter.largest, filter.invalid};
  if (!kStaged || filter.invalid) return kept;
  if (p.filtered()) {
    kept.count = compact_codes(staged, kept.count, kept.floor);
    kept.compacted = true;
  } else {
    __syncthreads();
    kept.logits = 0;
  }
  return kept;
}

// Likewise of a row without filters, which kernels of one type stream.
template <bool kStaged, LogitType kType>
DD2_DEVICE KeptCodes keep_codes(const GuidedRow<kType>& row, const TeacherRows& p, float*,
                                Selection<kThreads>&) {
  static_assert(!kStaged, "nothing to stage");
  const int count = static_cast<int>(p.vocabulary);
  const RowSummary summary = summarize<kThreads, false>(row, count, nullptr);
  return {nullptr, false, -1, count, -kFloatMax, summary.largest, summary.invalid};
}

// Puts the logits of compacted codes behind their indices in `staged`, where at most half of the
// vocabulary is kept.
template <typename Row>
DD2_DEVICE void keep_logits(const Row& row, long long vocabulary, float* staged, KeptCodes& kept) {
  if (!kept.compacted || 2 * kept.count > vocabulary) return;
  for (int i = threadIdx.x; i < kept.count; i += kThreads) {
    staged[kept.count + i] = row(__float_as_int(staged[i]));
  }
  __syncthreads();
  kept.logits = kept.count;
}

}  // namespace dd2
