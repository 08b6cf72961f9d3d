// A row of guided logits in cache: its statistics, top-k / top-p threshold and kept codes.
#pragma once

#include <cstring>

#include "dd2/teacher_rows.h"
#include "memory.h"
#include "simd.h"

namespace dd2::cpu::DD2_ISA {

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

// Fills `out` from row `row` of the teacher, its guided logits times `factor`. A row that keeps fewer
// than a quarter of its codes, or any row with `sparse_only`, is compressed to those.
void prepare_row(const TeacherRows& p, int64_t row, Row& out, RowBuffers& buffers,
                 bool sparse_only, float factor = 1.0f);

// Writes a row's guided logits, as prepare_row forms them, padded with -inf.
void guide_row(const TeacherRows& p, int64_t row, int64_t padded, float* guided);

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

}  // namespace dd2::cpu::DD2_ISA
