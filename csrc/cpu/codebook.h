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

// Transposes `count` codes less `centre` into one tile, zeros behind them, and sums their squares:
// every lane in the same order, so that equal codes have equal norms.
DD2_INLINE void pack_tile(const float* codes, int64_t count, int64_t dim, const float* centre,
                          float* tile, float* norms) {
  for (int64_t j = 0; j < kTile; ++j) {
    for (int64_t c = 0; c < dim; ++c) {
      tile[c * kTile + j] = j < count ? codes[j * dim + c] - centre[c] : 0.0f;
    }
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

// The mean of some 64 codes all over the codebook, enough to be near the others.
DD2_INLINE void mean_code(const float* codes, int64_t vocabulary, int64_t dim, float* mean) {
  const int64_t step = vocabulary / 64 + 1, count = (vocabulary + step - 1) / step;
  for (int64_t c = 0; c < round_up(dim, kLanes); ++c) mean[c] = 0.0f;
  for (int64_t j = 0; j < vocabulary; j += step) {
    for (int64_t c = 0; c < dim; ++c) mean[c] += codes[j * dim + c] / static_cast<float>(count);
  }
}

struct Codebook {
  int64_t vocabulary;
  int64_t padded_vocabulary;  // a multiple of kTile
  int64_t padded_dim;         // a multiple of kLanes
  bool has_nan;
  const float* rows;         // [vocabulary, padded_dim]: the caller's where that is dim
  Buffer<float> own_rows;
  Buffer<float> centre;  // m [padded_dim], about the mean code: expanded squares are small around it
  Buffer<float> packed;  // c_j - m [padded_vocabulary / kTile, dim, kTile]
  Buffer<float> norms;   // |c_j - m|^2 [padded_vocabulary]
  float largest_norm;    // of them

  Codebook(const float* codes, int64_t vocabulary_size, int64_t dim, bool wants_packed,
           int num_threads)
      : vocabulary(vocabulary_size),
        padded_vocabulary(round_up(vocabulary, kTile)),
        padded_dim(round_up(dim, kLanes)),
        has_nan(false),
        rows(codes),
        centre(allocate<float>(padded_dim)),
        packed(allocate<float>(wants_packed ? padded_vocabulary * dim : 0)),
        norms(allocate<float>(wants_packed ? padded_vocabulary : 0)),
        largest_norm(0.0f) {
    mean_code(codes, vocabulary, dim, centre.get());
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
        pack_tile(codes + first * dim, count, dim, centre.get(), packed.get() + first * dim, norm);
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
    for (int64_t j = 0; wants_packed && j < padded_vocabulary; ++j) {
      largest_norm = norms[j] > largest_norm ? norms[j] : largest_norm;
    }
  }
};

}  // namespace
}  // namespace dd2::cpu::DD2_ISA
