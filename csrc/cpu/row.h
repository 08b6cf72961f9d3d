// A row of guided logits in cache: its statistics, top-k / top-p threshold and kept codes.
#pragma once

#include <cstring>

#include "dd2/teacher_rows.h"
#include "memory.h"
#include "simd.h"
#include "threshold.h"

namespace dd2::cpu::DD2_ISA {
namespace {

// One row of guided logits and what its filters left.
struct Row {
  float* guided;     // [padded_vocabulary], -inf outside the filters
  float* values;     // [kept] of them, where compressed
  int32_t* indices;  // [kept], likewise
  int64_t kept;
  bool compressed;
  float largest;  // logit
  bool invalid;   // a NaN or +inf logit, or no code left: the row's result is NaN
};

// Room for the rows of one chunk, and for what filtering one of them needs.
struct RowBuffers {
  int64_t padded;
  Buffer<float> guided;     // [rows, padded]
  Buffer<float> values;     // [rows, padded] with room for a vector more, so the indices
  Buffer<int32_t> indices;
  Buffer<float> mass;  // [padded]

  RowBuffers(int64_t rows, int64_t padded_vocabulary)
      : padded(padded_vocabulary),
        guided(allocate<float>(rows * padded)),
        values(allocate<float>(rows * (padded + kLanes))),
        indices(allocate<int32_t>(rows * (padded + kLanes))),
        mass(allocate<float>(padded)) {}

  DD2_INLINE Row row(int64_t i) {
    return {guided.get() + i * padded, values.get() + i * (padded + kLanes),
            indices.get() + i * (padded + kLanes), 0, false, 0.0f, false};
  }
};

// Running statistics of a row of guided logits; mean and deviation only where a filter asks.
template <bool kMoments>
struct Accumulator {
  Vec largest = broadcast(negative_infinity());
  Vec check{};  // NaN once a value was NaN or +inf
  Vec sum{};
  Vec square{};
  IntVec finite{};

  DD2_INLINE void add(Vec value) {
    largest = max(value, largest);
    check += max(broadcast(-kFloatMax), value) * 0.0f;
    if (!kMoments) return;
    const IntVec is_finite = value > broadcast(negative_infinity());
    const Vec finite_value = is_finite ? value : Vec{};
    finite -= is_finite;
    sum += finite_value;
    square += finite_value * finite_value;
  }

  DD2_INLINE RowStatistics statistics() const {
    if (!kMoments) return {reduce_max(largest), 0.0f, 0.0f};
    const int count = reduce_add(finite);
    const float mean = reduce_add(sum) / count;
    const float variance = reduce_add(square) / count - mean * mean;
    return {reduce_max(largest), mean, __builtin_sqrtf(variance > 0.0f ? variance : 0.0f)};
  }
};

// Writes a row's guided logits times `factor`, padded with -inf.
template <typename T, bool kGuided, bool kMoments>
DD2_INLINE RowStatistics guide(const TeacherRows& p, int64_t row, float* guided, int64_t padded,
                               float factor, bool* invalid) {
  const T* cond = static_cast<const T*>(p.logits) + row * p.logits_stride;
  const T* uncond = kGuided ? static_cast<const T*>(p.uncond) + row * p.uncond_stride : nullptr;
  const Vec scale = broadcast(p.scale[row]);
  Accumulator<kMoments> total;
  int64_t j = 0;
  for (; j + kLanes <= p.vocabulary; j += kLanes) {
    Vec value = load(cond + j);
    if (kGuided) {
      value = guided_logit(value, load(uncond + j), scale, broadcast(negative_infinity()));
    }
    value *= factor;
    total.add(value);
    store(guided + j, value);
  }
  if (j < p.vocabulary) {
    const int left = static_cast<int>(p.vocabulary - j);
    T last_cond[kLanes] = {}, last_uncond[kLanes] = {};
    std::memcpy(last_cond, cond + j, left * sizeof(T));
    if (kGuided) std::memcpy(last_uncond, uncond + j, left * sizeof(T));
    Vec value = load(last_cond);
    if (kGuided) {
      value = guided_logit(value, load(last_uncond), scale, broadcast(negative_infinity()));
    }
    value *= factor;
    for (int lane = left; lane < kLanes; ++lane) value[lane] = negative_infinity();
    total.add(value);
    store(guided + j, value);
    j += kLanes;
  }
  for (; j < padded; j += kLanes) store(guided + j, broadcast(negative_infinity()));
  const RowStatistics statistics = total.statistics();
  *invalid = statistics.largest == negative_infinity() || reduce_add(total.check) != 0.0f;
  return statistics;
}

template <typename T, bool kGuided>
DD2_INLINE RowStatistics guide(const TeacherRows& p, int64_t row, float* guided, int64_t padded,
                               float factor, bool* invalid) {
  return p.filtered() ? guide<T, kGuided, true>(p, row, guided, padded, factor, invalid)
                      : guide<T, kGuided, false>(p, row, guided, padded, factor, invalid);
}

template <typename T>
DD2_INLINE RowStatistics guide(const TeacherRows& p, int64_t row, float* guided, int64_t padded,
                               float factor, bool* invalid) {
  return p.uncond != nullptr ? guide<T, true>(p, row, guided, padded, factor, invalid)
                             : guide<T, false>(p, row, guided, padded, factor, invalid);
}

// exp(value - largest) and its total.
DD2_INLINE float exponentiate(const float* values, float* mass, int64_t padded, float largest) {
  Vec total{};
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Vec e = exp2_nonpositive((load(values + i) - largest) * kLog2E);
    store(mass + i, e);
    total += e;
  }
  return reduce_add(total);
}

// Moves the values that are at least `threshold`, and their indices, to the front of `kept_values`
// and `kept_indices`; in place where `indices` is kept_indices, from 0, 1, ... where it is null.
DD2_INLINE int64_t keep_at_least(const float* values, const int32_t* indices, int64_t padded,
                                 float threshold, float* kept_values, int32_t* kept_indices) {
  const Vec limit = broadcast(threshold);
  IntVec index = lane_numbers();
  int64_t kept = 0;
  for (int64_t i = 0; i < padded; i += kLanes, index += kLanes) {
    const Vec value = load(values + i);
    if (indices != nullptr) std::memcpy(&index, indices + i, sizeof(index));
    const IntVec keep = value >= limit;
    compress(keep, index, kept_indices + kept);
    kept += compress(keep, value, kept_values + kept);
  }
  store(kept_values + kept, broadcast(negative_infinity()));
  return kept;
}

// Fills `out` from row `row` of the teacher, its guided logits times `factor`. A row that keeps fewer
// than a quarter of its codes, or any row with `sparse_only`, is compressed to those.
DD2_INLINE void prepare_row(const TeacherRows& p, int64_t row, Row& out, RowBuffers& buffers,
                            bool sparse_only, float factor = 1.0f) {
  const int64_t padded = buffers.padded;
  bool invalid = false;
  const auto guide_as = [&](auto type) {
    return guide<decltype(type)>(p, row, out.guided, padded, factor, &invalid);
  };
  const RowStatistics stats = p.logit_type == LogitType::kFloat32    ? guide_as(float())
                              : p.logit_type == LogitType::kBFloat16 ? guide_as(BFloat16())
                                                                     : guide_as(Float16());
  out.invalid = invalid;
  out.largest = stats.largest;
  out.compressed = false;
  out.kept = p.vocabulary;
  if (invalid) return;
  float threshold = negative_infinity();
  if (p.top_k > 0 && p.top_k < p.vocabulary) {
    threshold = kth_largest(out.guided, padded, p.vocabulary, p.top_k, stats);
  }
  // -inf is never kept, whatever the threshold.
  const float lowest = threshold > -kFloatMax ? threshold : -kFloatMax;
  const bool filtered = threshold > negative_infinity() || p.top_p < 1.0f;
  if (filtered || sparse_only) {
    out.kept = keep_at_least(out.guided, nullptr, padded, lowest, out.values, out.indices);
  }
  if (p.top_p < 1.0f) {
    const int64_t kept_padded = round_up(out.kept, kLanes);
    const float total = exponentiate(out.values, buffers.mass.get(), kept_padded, stats.largest);
    threshold = nucleus_threshold(out.values, buffers.mass.get(), kept_padded, stats.largest,
                                  p.top_p * total);
    out.kept =
        keep_at_least(out.values, out.indices, kept_padded, threshold, out.values, out.indices);
  }
  out.compressed = sparse_only || (filtered && out.kept * 4 < p.vocabulary);
  if (!out.compressed && threshold > negative_infinity()) {
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Vec value = load(out.guided + j);
      store(out.guided + j,
            value >= broadcast(threshold) ? value : broadcast(negative_infinity()));
    }
  }
}

}  // namespace
}  // namespace dd2::cpu::DD2_ISA
