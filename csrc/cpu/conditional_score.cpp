// The conditional score on CPUs: x0 = sum_j w_j c_j, its vector-Jacobian product, and what follows
// from both at a token, the distillation loss.
//
// A chunk of rows is handled in two stages. First each row's guided logits go to scratch and its
// top-k / top-p threshold is found there; a row that keeps few codes is compressed to their indices.
// Then the posterior: compressed rows gather their codes, the others run a register block of
// kQueries tokens against the whole codebook, so that a code loaded once serves them all.

#include "dd2/conditional_score.h"

#include "dd2/csd_loss.cuh"

#include "codebook.h"
#include "dispatch.h"
#include "row.h"
#include "simd.h"

namespace dd2::cpu::DD2_ISA {
namespace {

constexpr float kDirectBelow = 0.02f;  // noise level: see wants_direct

using Params = ConditionalScoreParams;

struct Scratch {
  RowBuffers rows;      // of one chunk, kQueries of them
  Buffer<float> scores;  // [kQueries, padded_vocabulary]
  Buffer<float> along;   // u·c_j, likewise, for the Jacobian
  Buffer<float> x_t;     // [kQueries, padded_dim], and so the others
  Buffer<float> direction;
  Buffer<float> mean;
  Buffer<float> spread;

  Scratch(bool jacobian, int64_t padded, int64_t padded_dim)
      : rows(kQueries, padded),
        scores(allocate<float>(kQueries * padded)),
        along(allocate<float>(jacobian ? kQueries * padded : 0)),
        x_t(allocate<float>(kQueries * padded_dim)),
        direction(allocate<float>(kQueries * padded_dim)),
        mean(allocate<float>(kQueries * padded_dim)),
        spread(allocate<float>(kQueries * padded_dim)) {}
};

// A token to denoise: a draw of a row.
struct Query {
  const Row* row;
  const float* x_t;        // [dim]
  const float* direction;  // [dim] or null
  int64_t token;
  float t;
};

// The sums over dimensions of of(v, code) for kLanes gathered codes, `code` being a vector of theirs.
template <int kVectors, typename Of>
DD2_INLINE Vec gathered(const Codebook& codebook, const int32_t* indices, const Of& of) {
  const int64_t vectors = kVectors > 0 ? kVectors : codebook.padded_dim / kLanes;
  return lane_sums([&](int lane) __attribute__((always_inline)) {
    const float* code = codebook.rows + indices[lane] * codebook.padded_dim;
    Vec sum{};
    for (int64_t v = 0; v < vectors; ++v) of(v * kLanes, load(code + v * kLanes), sum);
    return sum;
  });
}

// Scores of the kept codes of a token far from all of them, whose |x - (1-t) c|^2 would round away
// what tells them apart. In its place, of any code r, here the best as far as the scores tell,
//   |x - (1-t) c|^2 - |x - (1-t) r|^2 = ((1-t) r - (1-t) c)·(2 x - (1-t) r - (1-t) c).
DD2_NOINLINE float far_scores(const Query& q, const Codebook& codebook, NoiseLevel level,
                              int64_t dim, float largest, Scratch& scratch) {
  const int32_t* indices = q.row->indices;
  float* scores = scratch.scores.get();
  int64_t best = 0;
  while (best < q.row->kept - 1 && scores[best] != largest) ++best;
  const float* reference = codebook.rows + indices[best] * codebook.padded_dim;
  float* near = scratch.x_t.get();  // (1-t) r
  float* mirror = near + codebook.padded_dim;  // 2 x - (1-t) r
  for (int64_t c = 0; c < codebook.padded_dim; ++c) {
    near[c] = reference[c] * level.signal;
    mirror[c] = (c < dim ? 2.0f * q.x_t[c] : 0.0f) - near[c];
  }
  Vec most = broadcast(negative_infinity());
  for (int64_t i = 0; i < q.row->kept; i += kLanes) {
    const Vec farther = gathered<0>(
        codebook, indices + i, [&](int64_t c, Vec code, Vec& sum) __attribute__((always_inline)) {
          const Vec clean = code * level.signal;
          sum += (load(near + c) - clean) * (load(mirror + c) - clean);
        });
    const Vec score = (load(q.row->values + i) - q.row->largest) * level.two_t2 - farther;
    store(scores + i, score);
    most = max(score, most);
  }
  return reduce_max(most);
}

// From such a squared distance on, in units of t^2 and dimensions, its rounding may count. A token
// that was noised from a code is nearer; so is one that the codes surround, for which it is the
// most exact.
constexpr float kFar = 4.0f;

// Scores of the kept codes of one token, gathered; |x - (1-t) c|^2 is never expanded here.
template <int kVectors>
DD2_INLINE float sparse_scores(const Query& q, const Codebook& codebook, NoiseLevel level,
                               int64_t dim, Scratch& scratch, float* along) {
  float* scores = scratch.scores.get();
  float* x_t = scratch.x_t.get();
  float* direction = scratch.direction.get();
  for (int64_t c = 0; c < codebook.padded_dim; ++c) {
    x_t[c] = c < dim ? q.x_t[c] : 0.0f;
    if (along != nullptr) direction[c] = c < dim ? q.direction[c] : 0.0f;
  }
  int32_t* indices = q.row->indices;
  // Their values are -inf.
  for (int lane = 0; lane < kLanes; ++lane) indices[q.row->kept + lane] = indices[0];
  Vec largest = broadcast(negative_infinity());
  Vec nearest = broadcast(-negative_infinity()), farthest{};
  for (int64_t i = 0; i < q.row->kept; i += kLanes) {
    const Vec distance = gathered<kVectors>(
        codebook, indices + i, [&](int64_t c, Vec code, Vec& sum) __attribute__((always_inline)) {
          const Vec difference = load(x_t + c) - code * level.signal;
          sum += difference * difference;
        });
    const Vec score = (load(q.row->values + i) - q.row->largest) * level.two_t2 - distance;
    store(scores + i, score);
    largest = max(score, largest);
    nearest = distance < nearest ? distance : nearest;
    farthest = max(distance, farthest);
    if (along == nullptr) continue;
    const Vec projection = gathered<kVectors>(
        codebook, indices + i, [&](int64_t c, Vec code, Vec& sum) __attribute__((always_inline)) {
          sum += load(direction + c) * code;
        });
    store(along + i, projection);
  }
  const float best = reduce_max(largest), least = -reduce_max(-nearest);
  const bool far = 2.0f * least > kFar * static_cast<float>(dim) * level.two_t2;
  const bool surrounded = 0.25f * reduce_max(farthest) >= least && least <= kFloatMax;
  return far && !surrounded ? far_scores(q, codebook, level, dim, best, scratch) : best;
}

// Weights, relative to the largest, that are left out where few are above it: all together they
// are below a rounding error for every vocabulary up to 2^16.
constexpr float kNegligible = 0x1p-40f;

// Turns scores into unnormalised weights in place, sums them, and with `along` also
// z_j = (c_j - c_ref)·u weighted, where c_ref is the code of the largest score.
struct WeightSums {
  float weight;
  float along;
  int64_t notable;  // weights above kNegligible
};

DD2_NOINLINE WeightSums weigh(float* scores, float* along, int64_t count, float largest,
                            float exponent) {
  float reference = 0.0f;
  if (along != nullptr) {
    int64_t best = 0;
    while (best < count - 1 && scores[best] != largest) ++best;
    reference = along[best];
  }
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  for (int64_t i = count; i < padded; ++i) {
    scores[i] = negative_infinity();
    if (along != nullptr) along[i] = reference;
  }
  Vec weight{}, weighted{};
  IntVec notable{};
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Vec w = exp2_nonpositive((load(scores + i) - largest) * exponent);
    store(scores + i, w);
    weight += w;
    notable -= w >= broadcast(kNegligible);
    if (along != nullptr) {
      const Vec z = w * (load(along + i) - reference);
      store(along + i, z);
      weighted += z;
    }
  }
  return {reduce_add(weight), along != nullptr ? reduce_add(weighted) : 0.0f,
          reduce_add(notable)};
}

// Writes what is wanted of a token's x0 and J u.
DD2_NOINLINE void emit(const Params& p, const Query& q, const float* x0, const float* along) {
  const size_t bytes = p.dim * sizeof(float);
  if (p.out != nullptr) std::memcpy(p.out + q.token * p.dim, x0, bytes);
  if (p.jacobian != nullptr) std::memcpy(p.jacobian + q.token * p.dim, along, bytes);
  if (p.csd.loss == nullptr) return;
  const int64_t row = q.token / p.draws;
  const CsdSums sums = csd_sums(p.csd, row, q.token, p.dim, x0, 0, 1);
  csd_write(p.csd, row, q.token, p.dim, x0, q.direction != nullptr ? along : nullptr, sums, 0, 1);
}

// Turns the sums over codes into x0 and J u in place.
DD2_INLINE void finish(const Params& p, const Query& q, NoiseLevel level, WeightSums sums,
                       float* mean, float* spread) {
  const float inverse = 1.0f / sums.weight;
  for (int64_t c = 0; c < p.dim; ++c) {
    mean[c] *= inverse;
    if (q.direction == nullptr) continue;
    spread[c] = level.jacobian * (spread[c] * inverse - mean[c] * (sums.along * inverse));
  }
  emit(p, q, mean, spread);
}

// Whether a token's result is NaN, which is then written.
DD2_INLINE bool fails(const Params& p, const Query& q, const Codebook& codebook,
                      Scratch& scratch) {
  float check = q.t * 0.0f;
  for (int64_t c = 0; c < p.dim; ++c) {
    check += q.x_t[c] * 0.0f + (q.direction != nullptr ? q.direction[c] * 0.0f : 0.0f);
  }
  if (check == 0.0f && !q.row->invalid && !codebook.has_nan) return false;
  float* nans = scratch.mean.get();
  for (int64_t c = 0; c < p.dim; ++c) nans[c] = quiet_nan();
  emit(p, q, nans, nans);
  return true;
}

// sum_i weights_i c_{index i} over kept codes, and with kJacobian the same of `along`
// beside it, each on kChains chains of additions.
template <int kVectors, bool kJacobian>
DD2_INLINE void gathered_sums(const int32_t* indices, int64_t kept, const Codebook& codebook,
                              const float* weights, const float* along, float* mean,
                              float* spread) {
  constexpr int kStep = kVectors > 0 ? kVectors : 1;
  constexpr int kChains = kStep == 1 ? 4 : 2;
  const int64_t stride = codebook.padded_dim;
  for (int64_t first = 0; first < stride; first += kStep * kLanes) {
    const float* codes = codebook.rows + first;
    Vec sum[kChains][kStep] = {}, sum_along[kChains][kStep] = {};
    const auto add = [&](int64_t i, int chain) __attribute__((always_inline)) {
      for (int v = 0; v < kStep; ++v) {
        const Vec code = load(codes + indices[i] * stride + v * kLanes);
        sum[chain][v] += code * weights[i];
        if (kJacobian) sum_along[chain][v] += code * along[i];
      }
    };
    int64_t i = 0;
    for (; i + kChains <= kept; i += kChains) {
      for (int chain = 0; chain < kChains; ++chain) add(i + chain, chain);
    }
    for (; i < kept; ++i) add(i, 0);
    for (int v = 0; v < kStep; ++v) {
      for (int chain = 1; chain < kChains; ++chain) {
        sum[0][v] += sum[chain][v];
        sum_along[0][v] += sum_along[chain][v];
      }
      store(mean + first + v * kLanes, sum[0][v]);
      if (kJacobian) store(spread + first + v * kLanes, sum_along[0][v]);
    }
  }
}

template <int kVectors, bool kJacobian>
DD2_NOINLINE void solve_sparse(const Params& p, const Codebook& codebook, const Query& q,
                             Scratch& scratch) {
  const NoiseLevel level(q.t);
  float* scores = scratch.scores.get();
  float* along = kJacobian ? scratch.along.get() : nullptr;
  float* mean = scratch.mean.get();
  float* spread = scratch.spread.get();
  const float largest = sparse_scores<kVectors>(q, codebook, level, p.dim, scratch, along);
  const WeightSums sums = weigh(scores, along, q.row->kept, largest, level.exponent);
  gathered_sums<kVectors, kJacobian>(q.row->indices, q.row->kept, codebook, scores, along, mean,
                                     spread);
  finish(p, q, level, sums, mean, spread);
}

// Scores (and u·c_j) of kQueries tokens against one tile of codes.
template <bool kDirect, bool kJacobian>
DD2_INLINE void dense_tile(const Query* const (&q)[kQueries], const Codebook& codebook,
                           const float* x_t, const NoiseLevel (&level)[kQueries],
                           int64_t j, int64_t dim, float* scores, float* along, int64_t padded,
                           Vec (&largest)[kQueries]) {
  Vec sum[kQueries][2];
  const Vec norm[2] = {load(codebook.norms.get() + j), load(codebook.norms.get() + j + kLanes)};
  for (int i = 0; i < kQueries; ++i) {
    for (int h = 0; h < 2; ++h) {
      sum[i][h] = (load(q[i]->row->guided + j + h * kLanes) - q[i]->row->largest) * level[i].two_t2;
      if (!kDirect) sum[i][h] -= norm[h] * (level[i].signal * level[i].signal);
    }
  }
  const float* tile = codebook.packed.get() + j * dim;
  for (int64_t c = 0; c < dim; ++c) {
    const Vec code[2] = {load(tile + c * kTile), load(tile + c * kTile + kLanes)};
    for (int i = 0; i < kQueries; ++i) {
      for (int h = 0; h < 2; ++h) {
        if (kDirect) {
          const Vec difference = broadcast(x_t[i * codebook.padded_dim + c]) - code[h] * level[i].signal;
          sum[i][h] -= difference * difference;
        } else {
          sum[i][h] += code[h] * x_t[i * codebook.padded_dim + c];
        }
      }
    }
  }
  for (int i = 0; i < kQueries; ++i) {
    for (int h = 0; h < 2; ++h) {
      store(scores + i * padded + j + h * kLanes, sum[i][h]);
      largest[i] = max(sum[i][h], largest[i]);
    }
  }
  if (kJacobian) {
    Vec projection[kQueries][2] = {};
    for (int64_t c = 0; c < dim; ++c) {
      const Vec code[2] = {load(tile + c * kTile), load(tile + c * kTile + kLanes)};
      for (int i = 0; i < kQueries; ++i) {
        for (int h = 0; h < 2; ++h) projection[i][h] += code[h] * q[i]->direction[c];
      }
    }
    for (int i = 0; i < kQueries; ++i) {
      for (int h = 0; h < 2; ++h) store(along + i * padded + j + h * kLanes, projection[i][h]);
    }
  }
}

// sum_j weights_j c_j for kCount tokens, kVectors * kLanes dimensions at a time; weights and sums of
// token i are at its `slots[i]`.
template <int kCount, int kVectors>
DD2_INLINE void weighted_codes(const float* weights, const int* slots, const Codebook& codebook,
                               int64_t first, float* out) {
  const float* of[kCount];
  for (int i = 0; i < kCount; ++i) of[i] = weights + slots[i] * codebook.padded_vocabulary;
  Vec sum[kCount][kVectors] = {};
  const float* code = codebook.rows + first;
  for (int64_t j = 0; j < codebook.vocabulary; ++j, code += codebook.padded_dim) {
    for (int v = 0; v < kVectors; ++v) {
      const Vec c = load(code + v * kLanes);
      for (int i = 0; i < kCount; ++i) sum[i][v] += c * of[i][j];
    }
  }
  for (int i = 0; i < kCount; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      store(out + slots[i] * codebook.padded_dim + first + v * kLanes, sum[i][v]);
    }
  }
}

template <int kCount>
DD2_INLINE void weighted_codes(const float* weights, const int* slots, const Codebook& codebook,
                               float* out) {
  int64_t first = 0;
  for (; first + 2 * kLanes <= codebook.padded_dim; first += 2 * kLanes) {
    weighted_codes<kCount, 2>(weights, slots, codebook, first, out);
  }
  if (first < codebook.padded_dim) {
    weighted_codes<kCount, 1>(weights, slots, codebook, first, out);
  }
}

// The same for the `count` tokens of `slots`, which has room for kQueries.
DD2_NOINLINE void weighted_codes(const float* weights, int* slots, int count,
                               const Codebook& codebook, float* out) {
  constexpr int kThird = kQueries / 3;
  for (int i = count; i < kQueries; ++i) slots[i] = slots[0];
  if (count > 2 * kThird) {
    weighted_codes<kQueries>(weights, slots, codebook, out);
  } else if (count > kThird) {
    weighted_codes<2 * kThird>(weights, slots, codebook, out);
  } else if (count > 0) {
    weighted_codes<kThird>(weights, slots, codebook, out);
  }
}

// sum_j weights_j c_j for a token with few notable weights; moves those to the front.
template <bool kJacobian>
DD2_NOINLINE void notable_codes(const Row& row, const Codebook& codebook, float* weights,
                              float* along, float* mean, float* spread) {
  const int64_t kept = keep_at_least(weights, nullptr, codebook.padded_vocabulary, kNegligible,
                                     row.values, row.indices);
  for (int64_t i = 0; kJacobian && i < kept; ++i) along[i] = along[row.indices[i]];
  if (codebook.padded_dim == 2 * kLanes) {
    gathered_sums<2, kJacobian>(row.indices, kept, codebook, row.values, along, mean, spread);
  } else if (codebook.padded_dim == kLanes) {
    gathered_sums<1, kJacobian>(row.indices, kept, codebook, row.values, along, mean, spread);
  } else {
    gathered_sums<0, kJacobian>(row.indices, kept, codebook, row.values, along, mean, spread);
  }
}

template <bool kDirect, bool kJacobian>
DD2_NOINLINE void solve_dense(const Params& p, const Codebook& codebook,
                            const Query* const (&q)[kQueries], int count, Scratch& scratch) {
  const int64_t padded = codebook.padded_vocabulary;
  NoiseLevel level[kQueries];
  for (int i = 0; i < kQueries; ++i) level[i] = NoiseLevel(q[i]->t);
  float* x_t = scratch.x_t.get();
  for (int i = 0; i < kQueries; ++i) {
    const float factor = kDirect ? 1.0f : 2.0f * level[i].signal;
    for (int64_t c = 0; c < p.dim; ++c) {
      // x - (1-t) m, as the packed codes are c - m.
      const float m = codebook.centre[c], centred = q[i]->x_t[c] - m + q[i]->t * m;
      x_t[i * codebook.padded_dim + c] = centred * factor;
    }
  }
  float* scores = scratch.scores.get();
  float* along = kJacobian ? scratch.along.get() : nullptr;
  Vec largest[kQueries];
  for (int i = 0; i < kQueries; ++i) largest[i] = broadcast(negative_infinity());
  for (int64_t j = 0; j < padded; j += kTile) {
    dense_tile<kDirect, kJacobian>(q, codebook, x_t, level, j, p.dim, scores, along, padded,
                                   largest);
  }
  WeightSums sums[kQueries];
  for (int i = 0; i < kQueries; ++i) {
    sums[i] = weigh(scores + i * padded, kJacobian ? along + i * padded : nullptr, padded,
                    reduce_max(largest[i]), level[i].exponent);
  }
  float* mean = scratch.mean.get();
  float* spread = scratch.spread.get();
  int broad[kQueries];
  int broad_count = 0;
  for (int i = 0; i < count; ++i) {
    if (sums[i].notable * 8 > codebook.vocabulary) {
      broad[broad_count++] = i;
    } else {
      const int64_t offset = i * codebook.padded_dim;
      notable_codes<kJacobian>(*q[i]->row, codebook, scores + i * padded,
                               kJacobian ? along + i * padded : nullptr, mean + offset,
                               spread + offset);
    }
  }
  weighted_codes(scores, broad, broad_count, codebook, mean);
  if (kJacobian) weighted_codes(along, broad, broad_count, codebook, spread);
  for (int i = 0; i < count; ++i) {
    const int64_t offset = i * codebook.padded_dim;
    finish(p, *q[i], level[i], sums[i], mean + offset, spread + offset);
  }
}

// Whether |x - (1-t) c|^2 is better not expanded: at small noise, unless x is far from all codes.
DD2_INLINE bool wants_direct(const Query& q, const Codebook& codebook, int64_t dim) {
  if (q.t >= kDirectBelow) return false;
  float square = 0.0f;
  for (int64_t c = 0; c < dim; ++c) {
    const float centred = q.x_t[c] - codebook.centre[c];
    square += centred * centred;
  }
  return square <= 16.0f * codebook.largest_norm;
}

// Dense tokens waiting for a full register block, apart by how their distances are computed, so
// that a token's result does not depend on its neighbours'.
struct Waiting {
  const Query* queries[kQueries];
  int count = 0;
};

template <bool kDirect, bool kJacobian>
DD2_INLINE void flush(const Params& p, const Codebook& codebook, Waiting& waiting,
                      Scratch& scratch) {
  if (waiting.count == 0) return;
  for (int i = waiting.count; i < kQueries; ++i) waiting.queries[i] = waiting.queries[0];
  solve_dense<kDirect, kJacobian>(p, codebook, waiting.queries, waiting.count, scratch);
  waiting.count = 0;
}

template <bool kJacobian>
DD2_INLINE void solve_queries(const Params& p, const Codebook& codebook, const Query* queries,
                              int64_t count, Scratch& scratch) {
  Waiting direct, expanded;
  for (int64_t i = 0; i < count; ++i) {
    const Query& q = queries[i];
    if (fails(p, q, codebook, scratch)) continue;
    if (!q.row->compressed) {
      Waiting& waiting = wants_direct(q, codebook, p.dim) ? direct : expanded;
      waiting.queries[waiting.count++] = &q;
      if (direct.count == kQueries) flush<true, kJacobian>(p, codebook, direct, scratch);
      if (expanded.count == kQueries) flush<false, kJacobian>(p, codebook, expanded, scratch);
    } else if (codebook.padded_dim == 2 * kLanes) {
      solve_sparse<2, kJacobian>(p, codebook, q, scratch);
    } else if (codebook.padded_dim == kLanes) {
      solve_sparse<1, kJacobian>(p, codebook, q, scratch);
    } else {
      solve_sparse<0, kJacobian>(p, codebook, q, scratch);
    }
  }
  flush<true, kJacobian>(p, codebook, direct, scratch);
  flush<false, kJacobian>(p, codebook, expanded, scratch);
}

// Rows [first, last) of one chunk, at most kQueries of them.
void solve_chunk(const Params& p, const Codebook& codebook, int64_t first, int64_t last,
                            bool sparse_only, Scratch& scratch) {
  Row rows[kQueries];
  for (int64_t r = first; r < last; ++r) {
    rows[r - first] = scratch.rows.row(r - first);
    prepare_row(p.teacher, r, rows[r - first], scratch.rows, sparse_only);
  }
  constexpr int kBatch = 8 * kQueries;
  Query queries[kBatch];
  int64_t count = 0;
  for (int64_t n = first * p.draws; n < last * p.draws; ++n) {
    queries[count++] = {&rows[n / p.draws - first], p.x_t + n * p.dim,
                        p.direction == nullptr ? nullptr : p.direction + n * p.dim, n, p.t[n]};
    if (count == kBatch || n == last * p.draws - 1) {
      if (p.direction != nullptr) {
        solve_queries<true>(p, codebook, queries, count, scratch);
      } else {
        solve_queries<false>(p, codebook, queries, count, scratch);
      }
      count = 0;
    }
  }
}

}  // namespace

void launch_conditional_score(const ConditionalScoreParams& p, int num_threads) {
  const TeacherRows& teacher = p.teacher;
  if (teacher.rows <= 0 || p.draws <= 0) return;
  // Few codes left by top-k: no row will run dense, so skip packing for it. (Not for few tokens too:
  // a row alone must get the bits that it gets in a batch.)
  const bool sparse_only = teacher.top_k > 0 && teacher.top_k < (teacher.vocabulary + 3) / 4;
  const Codebook codebook(p.codebook, teacher.vocabulary, p.dim, !sparse_only, num_threads);
  const int64_t rows_a_chunk = p.draws >= kQueries ? 1 : (kQueries + p.draws - 1) / p.draws;
  const int64_t chunks = (teacher.rows + rows_a_chunk - 1) / rows_a_chunk;
  PerThread<Scratch> scratch(num_threads, chunks, p.direction != nullptr,
                             codebook.padded_vocabulary, codebook.padded_dim);
#pragma omp parallel num_threads(scratch.threads())
  {
    Scratch& mine = scratch.mine();
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t first = i * rows_a_chunk, last = first + rows_a_chunk;
      solve_chunk(p, codebook, first, last < teacher.rows ? last : teacher.rows, sparse_only, mine);
    }
  }
}

}  // namespace dd2::cpu::DD2_ISA
