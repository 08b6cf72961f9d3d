// The nearest code on CPUs: argmax_j x·c_j - |c_j|^2 / 2, a register block of kQueries tokens
// against the whole codebook, so that a code loaded once serves them all.

#include "dd2/nearest_code.h"

#include "codebook.h"
#include "dispatch.h"
#include "simd.h"

namespace dd2::cpu::DD2_ISA {
namespace {

// The best code so far in each lane of one token.
struct Best {
  Vec score;
  IntVec code;
};

// Folds the lanes; the first code on ties, -1 where there is none.
DD2_INLINE int64_t winner(const Best& best) {
  float score = negative_infinity();
  int32_t code = -1;
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool first_of_equals = best.score[lane] == score && best.code[lane] < code;
    if (best.score[lane] > score || first_of_equals) {
      score = best.score[lane];
      code = best.code[lane];
    }
  }
  return code;
}

// `x` is [dim, kQueries].
DD2_INLINE void search(const Codebook& codebook, const float* x, int64_t dim,
                       Best (&best)[kQueries]) {
  for (int i = 0; i < kQueries; ++i) best[i] = {broadcast(negative_infinity()), IntVec{} - 1};
  for (int64_t j = 0; j < codebook.padded_vocabulary; j += kTile) {
    Vec sum[kQueries][2];
    for (int h = 0; h < 2; ++h) {
      const Vec start = load(codebook.norms.get() + j + h * kLanes) * -0.5f;
      for (int i = 0; i < kQueries; ++i) sum[i][h] = start;
    }
    const float* tile = codebook.packed.get() + j * dim;
    for (int64_t c = 0; c < dim; ++c) {
      const Vec code[2] = {load(tile + c * kTile), load(tile + c * kTile + kLanes)};
      for (int i = 0; i < kQueries; ++i) {
        for (int h = 0; h < 2; ++h) sum[i][h] += code[h] * x[c * kQueries + i];
      }
    }
    const IntVec index = lane_numbers() + static_cast<int32_t>(j);
    for (int i = 0; i < kQueries; ++i) {
      for (int h = 0; h < 2; ++h) {
        const IntVec better = sum[i][h] > best[i].score;
        best[i].score = better ? sum[i][h] : best[i].score;
        best[i].code = better ? index + h * kLanes : best[i].code;
      }
    }
  }
}

// Tokens [first, first + count), at most kQueries.
void solve_chunk(const NearestCodeParams& p, const Codebook& codebook, int64_t first, int64_t count,
                 float* x) {
  float check[kQueries] = {};
  for (int64_t i = 0; i < kQueries; ++i) {
    const float* token = p.x + (first + (i < count ? i : 0)) * p.dim;
    for (int64_t c = 0; c < p.dim; ++c) {
      x[c * kQueries + i] = token[c];
      check[i] += token[c] * 0.0f;
    }
  }
  Best best[kQueries];
  search(codebook, x, p.dim, best);
  for (int64_t i = 0; i < count; ++i) p.out[first + i] = check[i] == 0.0f ? winner(best[i]) : -1;
}

}  // namespace

void launch_nearest_code(const NearestCodeParams& p, int num_threads) {
  if (p.rows <= 0) return;
  Codebook codebook(p.codebook, p.vocabulary, p.dim, true, num_threads, false);
  for (int64_t j = p.vocabulary; j < codebook.padded_vocabulary; ++j) {
    codebook.norms[j] = -negative_infinity();
  }
  const int64_t chunks = (p.rows + kQueries - 1) / kQueries;
#pragma omp parallel num_threads(num_threads) if (chunks > 1)
  {
    const Buffer<float> x = allocate<float>(kQueries * p.dim);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t first = i * kQueries, left = p.rows - first;
      solve_chunk(p, codebook, first, left < kQueries ? left : kQueries, x.get());
    }
  }
}

}  // namespace dd2::cpu::DD2_ISA
