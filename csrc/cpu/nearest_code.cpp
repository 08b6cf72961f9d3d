// The nearest code on CPUs: argmax_j x·c_j - |c_j|^2 / 2, a register block of two vectors of tokens,
// one a lane, against kCodes codes at a time. Codes are read as they are, tokens transposed.

#include "dd2/nearest_code.h"

#include "dispatch.h"
#include "memory.h"
#include "simd.h"

namespace dd2::cpu::DD2_ISA {
namespace {

constexpr int kCodes = kLanes == 16 ? 12 : 6;
constexpr int kTokens = 2 * kLanes;

// -|c_j|^2 / 2.
DD2_INLINE void half_norms(const float* codes, int64_t vocabulary, int64_t dim, float* out) {
  for (int64_t j = 0; j < vocabulary; ++j) {
    const float* code = codes + j * dim;
    Vec square{};
    int64_t c = 0;
    for (; c + kLanes <= dim; c += kLanes) square += load(code + c) * load(code + c);
    float norm = reduce_add(square);
    for (; c < dim; ++c) norm += code[c] * code[c];
    out[j] = -0.5f * norm;
  }
}

// Every thread has its own norms: they take less than to wait for the others'.
struct Scratch {
  Buffer<float> norms;  // -|c_j|^2 / 2 [vocabulary]
  Buffer<float> x;      // tokens [dim, kTokens]

  Scratch(int64_t vocabulary, int64_t dim)
      : norms(allocate<float>(vocabulary)), x(allocate<float>(kTokens * dim)) {}
};

// The best code so far of each token.
struct Best {
  Vec score;
  IntVec code;
};

// kCount codes from `first` against kVectors of tokens, `x` [dim, kTokens].
template <int kCount, int kVectors>
DD2_INLINE void compare(const NearestCodeParams& p, int64_t first, const float* half_norms,
                        const float* x, Best (&best)[kVectors]) {
  Vec sum[kCount][kVectors];
  for (int k = 0; k < kCount; ++k) {
    for (int v = 0; v < kVectors; ++v) sum[k][v] = broadcast(half_norms[first + k]);
  }
  const float* code = p.codebook + first * p.dim;
  for (int64_t c = 0; c < p.dim; ++c) {
    Vec token[kVectors];
    for (int v = 0; v < kVectors; ++v) token[v] = load(x + c * kTokens + v * kLanes);
    for (int k = 0; k < kCount; ++k) {
      const Vec value = broadcast(code[k * p.dim + c]);
      for (int v = 0; v < kVectors; ++v) sum[k][v] += value * token[v];
    }
  }
  for (int k = 0; k < kCount; ++k) {
    for (int v = 0; v < kVectors; ++v) {
      const IntVec better = sum[k][v] > best[v].score;
      best[v].score = better ? sum[k][v] : best[v].score;
      best[v].code = better ? IntVec{} + static_cast<int32_t>(first + k) : best[v].code;
    }
  }
}

template <int kVectors>
void search(const NearestCodeParams& p, const float* half_norms, const float* x, int32_t* codes) {
  Best best[kVectors];
  for (Best& b : best) b = {broadcast(negative_infinity()), IntVec{} - 1};
  int64_t j = 0;
  for (; j + kCodes <= p.vocabulary; j += kCodes) compare<kCodes>(p, j, half_norms, x, best);
  for (; j < p.vocabulary; ++j) compare<1>(p, j, half_norms, x, best);
  for (int v = 0; v < kVectors; ++v) {
    std::memcpy(codes + v * kLanes, &best[v].code, sizeof(best[v].code));
  }
}

// Tokens [first, first + count), at most kTokens.
void solve_tile(const NearestCodeParams& p, const float* half_norms, int64_t first, int64_t count,
                float* x) {
  float square[kTokens] = {};  // |x|^2: not finite with a NaN or infinity
  for (int64_t i = 0; i < kTokens; ++i) {
    const float* token = p.x + (first + (i < count ? i : 0)) * p.dim;
    for (int64_t c = 0; c < p.dim; ++c) {
      x[c * kTokens + i] = token[c];
      square[i] += token[c] * token[c];
    }
  }
  int32_t codes[kTokens];
  if (count > kLanes) {
    search<2>(p, half_norms, x, codes);
  } else {
    search<1>(p, half_norms, x, codes);
  }
  for (int64_t i = 0; i < count; ++i) p.out[first + i] = square[i] < -negative_infinity() ? codes[i] : -1;
}

}  // namespace

void launch_nearest_code(const NearestCodeParams& p, int num_threads) {
  if (p.rows <= 0) return;
  const int64_t tiles = (p.rows + kTokens - 1) / kTokens;
  PerThread<Scratch> scratch(num_threads, tiles, p.vocabulary, p.dim);
#pragma omp parallel num_threads(scratch.threads())
  {
    float* norms = scratch.mine().norms.get();
    float* x = scratch.mine().x.get();
    half_norms(p.codebook, p.vocabulary, p.dim, norms);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t first = i * kTokens, left = p.rows - first;
      solve_tile(p, norms, first, left < kTokens ? left : kTokens, x);
    }
  }
}

}  // namespace dd2::cpu::DD2_ISA
