// The probability-flow ODE from noise to a code on CPUs. A row's logits are guided and filtered
// once; all steps of its tokens then run over what the filters left, in cache. Without filters a
// register block of up to kQueries tokens shares the packed codebook; with them a row's kept codes
// are packed once, and its draws share those.
#pragma once

#include "dd2/flow_solve.h"

#include "codebook.h"
#include "row.h"
#include "simd.h"

namespace dd2::cpu::DD2_ISA {
namespace {

constexpr float kDirectBelow = 0.02f;  // noise level below which |x - (1-t) c|^2 is not expanded
constexpr int64_t kFewTokens = 2;      // at most so many are solved one at a time

// The codes that a block of tokens moves among.
struct Codes {
  const float* packed;     // c_j - m [padded / kTile, dim, kTile]
  const float* norms;      // |c_j - m|^2 [padded]
  const float* rows;       // [count, padded_dim]
  const float* centre;     // m [padded_dim]
  const int32_t* indices;  // in the codebook [count]; null: 0, 1, ...
  int64_t count;
  int64_t padded;  // a multiple of kTile
  int64_t dim;
  int64_t padded_dim;
};

// What the rows of a call share: the codebook, and all of its codes.
struct FlowCodes {
  Codebook codebook;
  Codes all;
  bool filtered;

  FlowCodes(const FlowSolveParams& p, int num_threads)
      : codebook(p.codebook, p.teacher.vocabulary, p.dim, !p.teacher.filtered(), num_threads),
        all{codebook.packed.get(), codebook.norms.get(), codebook.rows, codebook.centre.get(),
            nullptr, codebook.vocabulary, codebook.padded_vocabulary, p.dim, codebook.padded_dim},
        filtered(p.teacher.filtered()) {}
};

// A token to solve: a draw of a row.
struct Token {
  const float* logits;  // [Codes::padded], -inf where there is no code
  float largest;        // of them
  const float* noise;   // [dim]
  int64_t index;
};

struct FlowScratch {
  RowBuffers rows;
  Buffer<float> packed;  // of one row's kept codes, as in Codes
  Buffer<float> norms;
  Buffer<float> kept;    // [padded, padded_dim]
  Buffer<float> plain;   // [kTile, dim]
  Buffer<float> scores;  // [kQueries, padded]
  Buffer<float> x;       // [kQueries, padded_dim], and so the others
  Buffer<float> ahead;
  Buffer<float> velocity;
  Buffer<float> centred;
  Buffer<float> mean;

  explicit FlowScratch(const FlowCodes& codes)
      : FlowScratch(codes.filtered, codes.all.padded, codes.all.dim, codes.all.padded_dim) {}

  FlowScratch(bool filtered, int64_t padded, int64_t dim, int64_t padded_dim)
      : rows(filtered ? 1 : kQueries, padded),
        packed(allocate<float>(filtered ? padded * dim : 0)),
        norms(allocate<float>(filtered ? padded : 0)),
        kept(allocate<float>(filtered ? padded * padded_dim : 0)),
        plain(allocate<float>(filtered ? kTile * dim : 0)),
        scores(allocate<float>(kQueries * padded)),
        x(allocate<float>(kQueries * padded_dim)),
        ahead(allocate<float>(kQueries * padded_dim)),
        velocity(allocate<float>(kQueries * padded_dim)),
        centred(allocate<float>(kQueries * padded_dim)),
        mean(allocate<float>(kQueries * padded_dim)) {}
};

// Scores of kTokens tokens against all codes, and each token's largest. `x` is [kTokens,
// padded_dim] less (1-t) m, times 2 (1-t) where the square is expanded.
template <int kTokens, bool kDirect>
DD2_INLINE void score(const Codes& codes, const Token (&tokens)[kTokens], const float* x,
                      NoiseLevel level, float* scores, float (&largest)[kTokens]) {
  const int64_t dim = codes.dim, stride = codes.padded_dim;
  Vec best[kTokens];
  for (int i = 0; i < kTokens; ++i) best[i] = broadcast(negative_infinity());
  for (int64_t j = 0; j < codes.padded; j += kTile) {
    Vec sum[kTokens][2];
    for (int h = 0; h < 2; ++h) {
      const Vec norm = load(codes.norms + j + h * kLanes) * (level.signal * level.signal);
      for (int i = 0; i < kTokens; ++i) {
        const Vec logits = load(tokens[i].logits + j + h * kLanes);
        sum[i][h] = (logits - tokens[i].largest) * level.two_t2;
        if (!kDirect) sum[i][h] -= norm;
      }
    }
    const float* tile = codes.packed + j * dim;
    for (int64_t c = 0; c < dim; ++c) {
      const Vec code[2] = {load(tile + c * kTile), load(tile + c * kTile + kLanes)};
      for (int i = 0; i < kTokens; ++i) {
        for (int h = 0; h < 2; ++h) {
          if (kDirect) {
            const Vec difference = broadcast(x[i * stride + c]) - code[h] * level.signal;
            sum[i][h] -= difference * difference;
          } else {
            sum[i][h] += code[h] * x[i * stride + c];
          }
        }
      }
    }
    for (int i = 0; i < kTokens; ++i) {
      for (int h = 0; h < 2; ++h) {
        store(scores + i * codes.padded + j + h * kLanes, sum[i][h]);
        best[i] = max(sum[i][h], best[i]);
      }
    }
  }
  for (int i = 0; i < kTokens; ++i) largest[i] = reduce_max(best[i]);
}

// Turns scores into unnormalised weights in place and sums them.
DD2_INLINE float weigh(float* scores, int64_t padded, float largest, float exponent) {
  Vec total{};
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Vec weight = exp2_nonpositive((load(scores + j) - largest) * exponent);
    store(scores + j, weight);
    total += weight;
  }
  return reduce_add(total);
}

// sum_j weights_j c_j in kVectors * kLanes dimensions, on kChains chains of additions.
template <int kTokens, int kVectors, int kChains>
DD2_INLINE void weighted_codes(const Codes& codes, const float* weights, int64_t first,
                               float* out) {
  Vec sum[kChains][kTokens][kVectors] = {};
  const float* code = codes.rows + first;
  const auto add = [&](int64_t j, int chain) __attribute__((always_inline)) {
    for (int v = 0; v < kVectors; ++v) {
      const Vec c = load(code + j * codes.padded_dim + v * kLanes);
      for (int i = 0; i < kTokens; ++i) sum[chain][i][v] += c * weights[i * codes.padded + j];
    }
  };
  int64_t j = 0;
  for (; j + kChains <= codes.count; j += kChains) {
    for (int chain = 0; chain < kChains; ++chain) add(j + chain, chain);
  }
  for (; j < codes.count; ++j) add(j, 0);
  for (int i = 0; i < kTokens; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      Vec total = sum[0][i][v];
      for (int chain = 1; chain < kChains; ++chain) total += sum[chain][i][v];
      store(out + i * codes.padded_dim + first + v * kLanes, total);
    }
  }
}

// The posterior means [kTokens, padded_dim] of tokens `x` at noise level t, to scratch.mean.
template <int kTokens>
void posterior_means(const Codes& codes, const Token (&tokens)[kTokens], const float* x, float t,
                     FlowScratch& scratch) {
  constexpr int kChains = kTokens == 1 ? 4 : 1;
  const NoiseLevel level(t);
  float* scores = scratch.scores.get();
  float* mean = scratch.mean.get();
  float largest[kTokens], total[kTokens];
  const bool direct = t < kDirectBelow;
  const float factor = direct ? 1.0f : 2.0f * level.signal;
  float* centred = scratch.centred.get();
  for (int i = 0; i < kTokens; ++i) {
    for (int64_t c = 0; c < codes.padded_dim; ++c) {
      const float m = codes.centre[c], value = x[i * codes.padded_dim + c];
      centred[i * codes.padded_dim + c] = (value - m + t * m) * factor;
    }
  }
  direct ? score<kTokens, true>(codes, tokens, centred, level, scores, largest)
         : score<kTokens, false>(codes, tokens, centred, level, scores, largest);
  for (int i = 0; i < kTokens; ++i) {
    total[i] = weigh(scores + i * codes.padded, codes.padded, largest[i], level.exponent);
  }
  int64_t first = 0;
  for (; first + 2 * kLanes <= codes.padded_dim; first += 2 * kLanes) {
    weighted_codes<kTokens, 2, kChains>(codes, scores, first, mean);
  }
  if (first < codes.padded_dim) {
    weighted_codes<kTokens, 1, kChains>(codes, scores, first, mean);
  }
  for (int i = 0; i < kTokens; ++i) {
    const float inverse = 1.0f / total[i];
    for (int64_t c = 0; c < codes.padded_dim; ++c) mean[i * codes.padded_dim + c] *= inverse;
  }
}

// The code nearest to `x` among those with a logit, the first on ties; -1 where none is at a finite
// distance.
int64_t nearest(const Codes& codes, const Token& token, const float* x) {
  const Vec none = broadcast(-negative_infinity());
  Vec distance = none;
  IntVec place = IntVec{} - 1;
  for (int64_t j = 0; j < codes.padded; j += kTile) {
    for (int h = 0; h < 2; ++h) {
      const float* tile = codes.packed + j * codes.dim + h * kLanes;
      Vec sum{};
      for (int64_t c = 0; c < codes.dim; ++c) {
        const Vec difference = load(tile + c * kTile) - (x[c] - codes.centre[c]);
        sum += difference * difference;
      }
      const Vec logits = load(token.logits + j + h * kLanes);
      const IntVec closer = (sum < distance) & (logits > broadcast(negative_infinity()));
      distance = closer ? sum : distance;
      place = closer ? lane_numbers() + static_cast<int32_t>(j + h * kLanes) : place;
    }
  }
  float least = -negative_infinity();
  int32_t found = -1;
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool first_of_equals = distance[lane] == least && place[lane] < found;
    if (distance[lane] < least || first_of_equals) {
      least = distance[lane];
      found = place[lane];
    }
  }
  return found < 0 || codes.indices == nullptr ? found : codes.indices[found];
}

// All steps of a block of tokens, of which the first `count` are written.
template <int kTokens>
void solve(const FlowSolveParams& p, const Codes& codes, const Token (&tokens)[kTokens], int count,
           FlowScratch& scratch) {
  const int64_t stride = codes.padded_dim, size = kTokens * stride;
  float* x = scratch.x.get();
  float* ahead = scratch.ahead.get();
  float* velocity = scratch.velocity.get();
  const float* mean = scratch.mean.get();
  for (int i = 0; i < kTokens; ++i) {
    for (int64_t c = 0; c < stride; ++c) x[i * stride + c] = c < p.dim ? tokens[i].noise[c] : 0.0f;
  }
  const auto level = [&](int64_t i) { return static_cast<float>(static_cast<double>(i) / p.steps); };
  const float step = static_cast<float>(-1.0 / p.steps);
  for (int64_t i = p.steps; i > 1; --i) {
    const float t = level(i), next = level(i - 1);
    posterior_means<kTokens>(codes, tokens, x, t, scratch);
    for (int64_t c = 0; c < size; ++c) {
      velocity[c] = (x[c] - mean[c]) / t;
      ahead[c] = x[c] + step * velocity[c];
    }
    if (p.heun) {
      posterior_means<kTokens>(codes, tokens, ahead, next, scratch);
      for (int64_t c = 0; c < size; ++c) {
        x[c] += 0.5f * step * (velocity[c] + (ahead[c] - mean[c]) / next);
      }
    } else {
      std::memcpy(x, ahead, size * sizeof(float));
    }
  }
  posterior_means<kTokens>(codes, tokens, x, level(1), scratch);
  for (int i = 0; i < count; ++i) {
    p.out[tokens[i].index] = nearest(codes, tokens[i], mean + i * stride);
  }
}

// Tokens that wait for a full register block.
struct Waiting {
  Token tokens[kQueries];
  int count = 0;
};

// Solves those that wait, in the smallest block that holds them.
template <int kTokens>
DD2_INLINE void solve_waiting(const FlowSolveParams& p, const Codes& codes, Waiting& waiting,
                              FlowScratch& scratch) {
  constexpr int kFewer = kTokens - kQueries / 3;
  if constexpr (kFewer > 0) {
    if (waiting.count <= kFewer) return solve_waiting<kFewer>(p, codes, waiting, scratch);
  }
  Token tokens[kTokens];
  for (int i = 0; i < kTokens; ++i) tokens[i] = waiting.tokens[i < waiting.count ? i : 0];
  solve<kTokens>(p, codes, tokens, waiting.count, scratch);
}

void flush(const FlowSolveParams& p, const Codes& codes, Waiting& waiting, FlowScratch& scratch) {
  if (waiting.count > 0) solve_waiting<kQueries>(p, codes, waiting, scratch);
  waiting.count = 0;
}

// Solves the draws of row r, alone or in blocks that `waiting` gathers.
void solve_draws(const FlowSolveParams& p, const Codes& codes, const Row& row, const float* logits,
                 int64_t r, bool has_nan, bool alone, Waiting& waiting, FlowScratch& scratch) {
  for (int64_t n = r * p.draws; n < (r + 1) * p.draws; ++n) {
    const float* noise = p.noise + n * p.dim;
    float check = 0.0f;
    for (int64_t c = 0; c < p.dim; ++c) check += noise[c] * 0.0f;
    const Token token[1] = {{logits, row.largest, noise, n}};
    if (check != 0.0f || row.invalid || has_nan) {
      p.out[n] = -1;
    } else if (alone) {
      solve<1>(p, codes, token, 1, scratch);
    } else {
      waiting.tokens[waiting.count++] = token[0];
      if (waiting.count == kQueries) flush(p, codes, waiting, scratch);
    }
  }
}

// Packs the codes that a compressed row keeps.
Codes pack_kept(const Codebook& codebook, const Row& row, int64_t dim, FlowScratch& scratch) {
  const int64_t stride = codebook.padded_dim, padded = round_up(row.kept, kTile);
  float* kept = scratch.kept.get();
  for (int64_t first = 0; first < padded; first += kTile) {
    const int64_t count = row.kept - first < kTile ? row.kept - first : kTile;
    for (int64_t i = 0; i < count; ++i) {
      const float* code = codebook.rows + row.indices[first + i] * stride;
      std::memcpy(kept + (first + i) * stride, code, stride * sizeof(float));
      std::memcpy(scratch.plain.get() + i * dim, code, dim * sizeof(float));
    }
    pack_tile(scratch.plain.get(), count, dim, codebook.centre.get(),
              scratch.packed.get() + first * dim, scratch.norms.get() + first);
  }
  for (int64_t i = row.kept; i < padded; ++i) row.values[i] = negative_infinity();
  return {scratch.packed.get(), scratch.norms.get(), kept, codebook.centre.get(), row.indices,
          row.kept, padded, dim, stride};
}

// Solves rows first .. last - 1, without filters at most kQueries; their tokens are solved `alone`,
// or those that move among the same codes together.
void solve_rows(const FlowSolveParams& p, const FlowCodes& codes, int64_t first, int64_t last,
                bool alone, FlowScratch& scratch) {
  Waiting waiting;
  for (int64_t r = first; r < last; ++r) {
    Row row = scratch.rows.row(codes.filtered ? 0 : r - first);
    prepare_row(p.teacher, r, row, scratch.rows, codes.filtered);
    if (codes.filtered) {
      const Codes kept = row.invalid ? codes.all : pack_kept(codes.codebook, row, p.dim, scratch);
      solve_draws(p, kept, row, row.values, r, codes.codebook.has_nan, alone, waiting, scratch);
      flush(p, kept, waiting, scratch);
    } else {
      solve_draws(p, codes.all, row, row.guided, r, codes.codebook.has_nan, alone, waiting, scratch);
    }
  }
  if (!codes.filtered) flush(p, codes.all, waiting, scratch);
}

}  // namespace
}  // namespace dd2::cpu::DD2_ISA
