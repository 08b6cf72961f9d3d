// The codebook in the layouts that the dense and the gathering products read.
#pragma once

#include <cstring>

#include "memory.h"
#include "simd.h"

namespace dd2::cpu::DD2_ISA {
namespace {

constexpr int kTile = 2 * kLanes;  // codes in one register block

struct Codebook {
  int64_t vocabulary;
  int64_t padded_vocabulary;  // a multiple of kTile
  int64_t padded_dim;         // a multiple of kLanes
  bool has_nan;
  const float* rows;         // [vocabulary, padded_dim]: the caller's where dim is padded_dim
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
        norms(allocate<float>(padded_vocabulary)) {
    const bool copies = padded_dim != dim;
    if (copies) {
      own_rows = allocate<float>(vocabulary * padded_dim);
      rows = own_rows.get();
    }
    float check = 0.0f;
#pragma omp parallel for num_threads(num_threads) reduction(+ : check)
    for (int64_t first = 0; first < padded_vocabulary; first += kTile) {
      float* tile = wants_packed ? packed.get() + first * dim : nullptr;
      for (int64_t j = first; j < first + kTile; ++j) {
        float norm = 0.0f;
        for (int64_t c = 0; c < dim; ++c) {
          const float value = j < vocabulary ? codes[j * dim + c] : 0.0f;
          if (tile != nullptr) tile[c * kTile + j - first] = value;
          norm += value * value;
        }
        norms[j] = norm;
        check += norm * 0.0f;
        if (!copies || j >= vocabulary) continue;
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
