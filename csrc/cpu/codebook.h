// The codebook in the layouts that the dense and the gathering products read.
#pragma once

#include <cstring>

#include "memory.h"
#include "simd.h"

namespace dd2::cpu::DD2_ISA {
namespace {

constexpr int kTile = 2 * kLanes;  // codes in one register block
// Tokens in one register block: two vectors each, beside the codes.
constexpr int kQueries = kLanes == 16 ? 12 : 6;

// Transposes `count` codes into one tile, zeros behind them, and sums their squares: every lane in
// the same order, so that equal codes have equal norms.
DD2_INLINE void pack_tile(const float* codes, int64_t count, int64_t dim, float* tile,
                          float* norms) {
  for (int64_t j = 0; j < kTile; ++j) {
    for (int64_t c = 0; c < dim; ++c) tile[c * kTile + j] = j < count ? codes[j * dim + c] : 0.0f;
  }
  Vec norm[2] = {};
  for (int64_t c = 0; c < dim; ++c) {
    for (int h = 0; h < 2; ++h) {
      const Vec value = load(tile + c * kTile + h * kLanes);
      norm[h] += value * value;
    }
  }
  for (int h = 0; h < 2; ++h) store(norms + h * kLanes, norm[h]);
}

// 0, or NaN where one of `count` values is not finite.
DD2_INLINE float zero_or_nan(const float* values, int64_t count) {
  Vec zero{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) zero += load(values + i) * 0.0f;
  float total = reduce_add(zero);
  for (; i < count; ++i) total += values[i] * 0.0f;
  return total;
}

struct Codebook {
  int64_t vocabulary;
  int64_t padded_vocabulary;  // a multiple of kTile
  int64_t padded_dim;         // a multiple of kLanes
  bool has_nan;
  const float* rows;         // [vocabulary, padded_dim]: the caller's where that is dim
  Buffer<float> own_rows;
  Buffer<float> packed;  // [padded_vocabulary / kTile, dim, kTile]
  Buffer<float> norms;   // |c_j|^2 [padded_vocabulary]

  Codebook(const float* codes, int64_t vocabulary_size, int64_t dim, bool wants_packed,
           int num_threads)
      : vocabulary(vocabulary_size),
        padded_vocabulary(round_up(vocabulary, kTile)),
        padded_dim(round_up(dim, kLanes)),
        has_nan(false),
        rows(codes),
        packed(allocate<float>(wants_packed ? padded_vocabulary * dim : 0)),
        norms(allocate<float>(wants_packed ? padded_vocabulary : 0)) {
    const bool copies = padded_dim != dim;
    if (copies) {
      own_rows = allocate<float>(vocabulary * padded_dim);
      rows = own_rows.get();
    }
    float check = 0.0f;
#pragma omp parallel for num_threads(num_threads) reduction(+ : check)
    for (int64_t first = 0; first < padded_vocabulary; first += kTile) {
      const int64_t count = vocabulary - first < kTile ? vocabulary - first : kTile;
      if (wants_packed) {
        float* norm = norms.get() + first;
        pack_tile(codes + first * dim, count, dim, packed.get() + first * dim, norm);
        check += zero_or_nan(norm, kTile);  // squares overflow before codes do
      } else {
        check += zero_or_nan(codes + first * dim, count * dim);
      }
      for (int64_t j = first; copies && j < first + count; ++j) {
        float* row = own_rows.get() + j * padded_dim;
        std::memcpy(row, codes + j * dim, dim * sizeof(float));
        std::memset(row + dim, 0, (padded_dim - dim) * sizeof(float));
      }
    }
    has_nan = check != 0.0f;
  }
};

}  // namespace
}  // namespace dd2::cpu::DD2_ISA
