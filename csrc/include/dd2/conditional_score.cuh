// The conditional score on NVIDIA GPUs: one block a row of logits, online softmax over the kept codes.
//
// A filtered row's guided logits are staged in shared memory once, its threshold found there and the
// kept codes' indices compacted in place; every draw of the row then visits only those. An unfiltered
// row streams its logits. Distances are direct differences, so small noise levels lose no digits.
// A block accumulates kDim output dimensions at a time; wider codes take one block for every kDim of
// them, or, with the distillation loss, which needs them all, one block and a pass for every kDim.
#pragma once

#include "dd2/block.cuh"
#include "dd2/conditional_score.h"
#include "dd2/csd_loss.cuh"
#include "dd2/kept_codes.cuh"
#include "dd2/load_code.cuh"
#include "dd2/posterior.cuh"

namespace dd2 {

// A warp's softmax sums over the codes that it has seen, relative to the best of them:
// w_j = exp2((s_j - best) exponent), z_j = (c_j - c_best)·u. Each kLanes neighbouring lanes have the
// sums over some of the codes, a lane in four dimensions; `weight` and `along` are those of its own.
template <int kDim, bool kJacobian>
struct WarpSums {
  static constexpr int kLanes = kDim / 4;

  float best;        // of the warp
  float along_best;  // c_best·u
  float weight;      // sum w
  float along;       // sum w z
  float mean[4];     // sum w c
  float spread[kJacobian ? 4 : 1];  // sum w z c

  DD2_DEVICE void clear() {
    best = negative_infinity();
    weight = along_best = along = 0.0f;
    for (float& value : mean) value = 0.0f;
    for (float& value : spread) value = 0.0f;
  }

  // Moves to a new best code: z shifts by the change of c_best·u, then everything shrinks.
  DD2_DEVICE void rebase(float score, float along_new, float exponent) {
    const float shrink = exp2f((best - score) * exponent);
    const float shift = along_best - along_new;
    if (kJacobian) {
      for (int c = 0; c < 4; ++c) spread[c] = (spread[c] + shift * mean[c]) * shrink;
      along = (along + shift * weight) * shrink;
    }
    for (float& value : mean) value *= shrink;
    weight *= shrink;
    best = score;
    along_best = along_new;
  }

  // Adds kLanes codes, of which this lane has four dimensions each, and the score and c·u of one. The
  // lanes of a warp call it together, some code of which is kept; those that are not, but must be
  // numbers, have a score of -inf.
  DD2_DEVICE void add(float score, float along_code, const float (&codes)[kLanes][4],
                      float exponent) {
    if (__any_sync(kAllLanes, score > best)) {
      const float largest = warp_reduce(score, FloatMax());
      const unsigned holders = __ballot_sync(kAllLanes, score == largest);
      const int holder = __ffs(static_cast<int>(holders)) - 1;
      rebase(largest, kJacobian ? __shfl_sync(kAllLanes, along_code, holder) : 0.0f, exponent);
    }
    const float w = exp2_flushed((score - best) * exponent);
    const float wz = kJacobian ? w * (along_code - along_best) : 0.0f;
    weight += w;
    along += wz;
    for (int n = 0; n < kLanes; ++n) {
      const float one = __shfl_sync(kAllLanes, w, n, kLanes);
      for (int c = 0; c < 4; ++c) mean[c] = fused_multiply_add(one, codes[n][c], mean[c]);
      if (kJacobian) {
        const float other = __shfl_sync(kAllLanes, wz, n, kLanes);
        for (int c = 0; c < 4; ++c) spread[c] = fused_multiply_add(other, codes[n][c], spread[c]);
      }
    }
  }

  // The warp's sums, for all its lanes.
  DD2_DEVICE void reduce() {
    weight = warp_reduce(weight, Add());
    if (kJacobian) along = warp_reduce(along, Add());
    for (int offset = kLanes; offset < kWarp; offset *= 2) {
      for (float& value : mean) value += __shfl_xor_sync(kAllLanes, value, offset);
      if (kJacobian) {
        for (float& value : spread) value += __shfl_xor_sync(kAllLanes, value, offset);
      }
    }
  }
};

// The sums of a block's warps in shared memory, and those of all in one dimension.
template <int kDim, bool kJacobian>
struct BlockSums {
  float best[kWarps];
  float along_best[kWarps];
  float weight[kWarps];
  float along[kWarps];
  float mean[kWarps][kDim];
  float spread[kJacobian ? kWarps : 1][kDim];

  DD2_DEVICE void put(const WarpSums<kDim, kJacobian>& sums) {
    const int w = warp_index(), c = 4 * lane_index();
    if (c < kDim) {
      for (int n = 0; n < 4; ++n) mean[w][c + n] = sums.mean[n];
      if (kJacobian) {
        for (int n = 0; n < 4; ++n) spread[kJacobian ? w : 0][c + n] = sums.spread[n];
      }
    }
    if (lane_index() != 0) return;
    best[w] = sums.best;
    along_best[w] = sums.along_best;
    weight[w] = sums.weight;
    along[w] = sums.along;
  }

  DD2_DEVICE float largest() const {
    float value = best[0];
    for (int w = 1; w < kWarps; ++w) value = Max()(best[w], value);
    return value;
  }

  struct Total {
    float weight, along, mean, spread;
  };

  DD2_DEVICE Total total(int c, float reference, float exponent) const {
    float along_reference = 0.0f;
    for (int w = 0; w < kWarps; ++w) {
      if (best[w] == reference) along_reference = along_best[w];
    }
    Total t{0.0f, 0.0f, 0.0f, 0.0f};
    for (int w = 0; w < kWarps; ++w) {
      // A warp without codes has none of either.
      const float share = weight[w] == 0.0f ? 0.0f : exp2f((best[w] - reference) * exponent);
      t.weight = fused_multiply_add(weight[w], share, t.weight);
      t.mean = fused_multiply_add(mean[w][c], share, t.mean);
      if (!kJacobian) continue;
      const float shift = along_best[w] - along_reference;
      t.along = fused_multiply_add(fused_multiply_add(shift, weight[w], along[w]), share, t.along);
      t.spread = fused_multiply_add(
          fused_multiply_add(shift, mean[w][c], spread[kJacobian ? w : 0][c]), share, t.spread);
    }
    return t;
  }
};

// A token's vectors in shared memory, each padded with zeros to a multiple of kDim.
struct TokenVectors {
  float* x_t;
  float* direction;  // u
  float* x0;
  float* along;  // J u

  DD2_DEVICE TokenVectors(float* shared, long long padded)
      : x_t(shared), direction(shared + padded), x0(shared + 2 * padded),
        along(shared + 3 * padded) {}
};

// What squared distances are taken less of: nothing, or, of a token so far from its codes that the
// distances round away what tells the codes apart, that to the first kept code r,
//   |x - (1-t) c|^2 - |x - (1-t) r|^2 = ((1-t) r - (1-t) c)·(2 x - (1-t) r - (1-t) c).
struct DistanceOrigin {
  bool is_code = false;

  // Whether the sums found without a code, their best score `best`, shall be taken anew with one: it
  // is about as far as the best, and distances are large to that between codes. A token that was
  // noised from a code, or that codes surround, is not such. The same for every thread.
  DD2_DEVICE bool moves(float best, const Codebook& codebook, const KeptCodes& kept,
                        const NoiseLevel& level, const float* x_t) {
    const int dim = codebook.dim;
    const float noise = 2.0f * level.two_t2 * static_cast<float>(dim);  // four times its square
    if (-best <= noise || is_code) return false;
    const auto code = [&](int i) {
      return codebook.values + static_cast<long long>(kept.code(i)) * dim;
    };
    const float *first = code(0), *last = code(kept.count - 1);
    float square = 0.0f, spread = 0.0f;
    DD2_NO_UNROLL
    for (int c = lane_index(); c < dim; c += kWarp) {
      const float far = fused_multiply_add(-level.signal, first[c], x_t[c]);
      const float apart = level.signal * (first[c] - last[c]);
      square = fused_multiply_add(far, far, square);
      spread = fused_multiply_add(apart, apart, spread);
    }
    square = warp_reduce(square, Add());
    spread = warp_reduce(spread, Add());
    is_code = square > noise && square > 16.0f * spread && square <= -4.0f * best;
    return is_code;
  }
};

// The squared distance of a code from the token `x_t`, less that of the code `origin`, and c·u. Such
// tokens are few: the loop keeps nothing in registers that the others' would have to spare.
template <bool kJacobian>
DD2_DEVICE void measure_far_code(const float* code, int dim, float signal, const float* x_t,
                                 const float* origin, const float* direction, float& distance,
                                 float& along) {
  DD2_NO_UNROLL
  for (int c = 0; c < dim; ++c) {
    const float value = code[c], nearer = signal * (origin[c] - value);
    const float mirror = fused_multiply_add(-signal, value + origin[c], 2.0f * x_t[c]);
    distance = fused_multiply_add(nearer, mirror, distance);
    if (kJacobian) along = fused_multiply_add(value, direction[c], along);
  }
}

// The sum over kLanes neighbouring lanes of values[n], to the n-th of them.
template <int kLanes>
DD2_DEVICE float scattered_sum(float (&values)[kLanes]) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    const bool upper = (lane_index() & half) != 0;
    for (int n = 0; n < half; ++n) {
      const float kept = upper ? values[n + half] : values[n];
      const float given = upper ? values[n] : values[n + half];
      values[n] = kept + __shfl_xor_sync(kAllLanes, given, half);
    }
  }
  return values[0];
}

// The sums over a warp's share of the kept codes, in dimensions [first, first + kDim), at the token
// `x_t` and along `direction` in shared memory. 32 codes at a time: kDim / 4 lanes read a code
// together, as many times as they are, and each gets the distance of one.
template <int kDim, bool kJacobian, typename Row>
DD2_DEVICE WarpSums<kDim, kJacobian> fold_codes(const Codebook& codebook, const Row& row,
                                                const KeptCodes& kept, const NoiseLevel& level,
                                                int first, const float* x_t,
                                                const DistanceOrigin& origin,
                                                const float* direction) {
  constexpr int kLanes = kDim / 4;
  const int dim = codebook.dim;
  const int lane = lane_index(), mine = first + 4 * (lane % kLanes);
  const bool fours = codebook.fours && first + kDim <= dim;
  // Of a row that is streamed the codes of neighbouring lanes are neighbours in memory.
  const bool streamed = Row::kStreamed && kDim > 8 && fours && dim == kDim;
  const float4* mine_of_first = reinterpret_cast<const float4*>(codebook.values + mine);
  float x[4], u[4];
  for (int c = 0; c < 4; ++c) {
    x[c] = x_t[mine + c];
    u[c] = kJacobian ? direction[mine + c] : 0.0f;
  }
  WarpSums<kDim, kJacobian> sums;
  sums.clear();
  for (int start = warp_index() * kWarp; start < kept.count; start += kThreads) {
    int code = 0;
    float logit = 0.0f;
    const bool is_kept = kept.read(row, start + lane, code, logit);
    const bool all = __all_sync(kAllLanes, is_kept);
    if (!all) {
      const unsigned some = __ballot_sync(kAllLanes, is_kept);
      if (some == 0) continue;
      // In place of a code that is not kept, one that is: its weight is 0, times a number.
      const int other = __shfl_sync(kAllLanes, code, __ffs(static_cast<int>(some)) - 1);
      if (!is_kept) code = other;
    }
    float codes[kLanes][4], distances[kLanes], alongs[kLanes];
    if (streamed && all) {
      const float4* group = mine_of_first + (start + lane - lane % kLanes) * kLanes;
      for (int n = 0; n < kLanes; ++n) {
        const float4 v = group[n * kLanes];
        codes[n][0] = v.x, codes[n][1] = v.y, codes[n][2] = v.z, codes[n][3] = v.w;
      }
    } else if (fours) {
      const unsigned begin = static_cast<unsigned>(code) * static_cast<unsigned>(dim / 4);
      for (int n = 0; n < kLanes; ++n) {
        const float4 v = mine_of_first[__shfl_sync(kAllLanes, begin, n, kLanes)];
        codes[n][0] = v.x, codes[n][1] = v.y, codes[n][2] = v.z, codes[n][3] = v.w;
      }
    } else {
      for (int n = 0; n < kLanes; ++n) {
        const long long one = __shfl_sync(kAllLanes, code, n, kLanes);
        load_code(codebook.values + one * dim, mine, dim, false, codes[n]);
      }
    }
    for (int n = 0; n < kLanes; ++n) {
      distances[n] = alongs[n] = 0.0f;
      for (int c = 0; c < 4; ++c) {
        const float difference = fused_multiply_add(-level.signal, codes[n][c], x[c]);
        distances[n] = fused_multiply_add(difference, difference, distances[n]);
        if (kJacobian) alongs[n] = fused_multiply_add(codes[n][c], u[c], alongs[n]);
      }
    }
    float distance = scattered_sum(distances), along = kJacobian ? scattered_sum(alongs) : 0.0f;
    const auto own = [&] { return codebook.values + static_cast<long long>(code) * dim; };
    if (origin.is_code) {
      distance = along = 0.0f;
      measure_far_code<kJacobian>(own(), dim, level.signal, x_t,
                                  codebook.values + static_cast<long long>(kept.code(0)) * dim,
                                  direction, distance, along);
    } else {
      DD2_NO_UNROLL
      for (int c = first > 0 ? 0 : kDim; c < dim; c = c + 1 == first ? first + kDim : c + 1) {
        const float value = own()[c];
        const float difference = fused_multiply_add(-level.signal, value, x_t[c]);
        distance = fused_multiply_add(difference, difference, distance);
        if (kJacobian) along = fused_multiply_add(value, direction[c], along);
      }
    }
    const float score = fused_multiply_add(level.two_t2, logit - kept.largest, -distance);
    sums.add(is_kept ? score : negative_infinity(), along, codes, level.exponent);
  }
  sums.reduce();
  return sums;
}

// Dimensions [first, first + kDim) of the posterior at a token: calls write(c, total), once for each
// of them, some thread.
template <int kDim, bool kJacobian, typename Row, typename Write>
DD2_DEVICE void solve_dimensions(const Codebook& codebook, const Row& row, const KeptCodes& kept,
                                  const NoiseLevel& level, int first, const float* x_t,
                                 const float* direction, BlockSums<kDim, kJacobian>& block, const Write& write) {
  DistanceOrigin origin;
  for (;;) {
    block.put(
        fold_codes<kDim, kJacobian>(codebook, row, kept, level, first, x_t, origin, direction));
    __syncthreads();
    const float largest = block.largest();
    const bool again = origin.moves(largest, codebook, kept, level, x_t);
    if (!again && threadIdx.x < kDim) {
      const int c = static_cast<int>(threadIdx.x);
      write(first + c, block.total(c, largest, level.exponent));
    }
    __syncthreads();
    if (!again) return;
  }
}

// Writes what is wanted of this block's dimensions of a token's x0 and J u.
template <int kDim>
DD2_DEVICE void emit_token(const ConditionalScoreParams& p, long long token,
                           const TokenVectors& shared) {
  const long long first = static_cast<long long>(blockIdx.y) * kDim;
  const long long last = gridDim.y == 1 || first + kDim > p.dim ? p.dim : first + kDim;
  for (long long c = first + threadIdx.x; c < last; c += kThreads) {
    if (p.out != nullptr) p.out[token * p.dim + c] = shared.x0[c];
    if (p.jacobian != nullptr) p.jacobian[token * p.dim + c] = shared.along[c];
  }
  if (p.csd.loss == nullptr || warp_index() != 0) return;
  const long long row = token / p.draws;
  CsdSums sums = csd_sums(p.csd, row, token, p.dim, shared.x0, lane_index(), kWarp);
  sums.value = warp_reduce(sums.value, Add());
  sums.distance = warp_reduce(sums.distance, Add());
  csd_write(p.csd, row, token, p.dim, shared.x0, p.direction != nullptr ? shared.along : nullptr,
            sums, lane_index(), kWarp);
}

// One token, in the dimensions that fall to this block.
template <int kDim, bool kJacobian, typename Row>
DD2_DEVICE void solve_token(const ConditionalScoreParams& p, const Row& row, const KeptCodes& kept,
                            long long token, BlockSums<kDim, kJacobian>& block,
                            const TokenVectors& shared) {
  const int dim = static_cast<int>(p.dim), padded = static_cast<int>(padded_dim<kDim>(p));
  for (int c = threadIdx.x; c < padded; c += kThreads) {
    shared.x_t[c] = c < dim ? p.x_t[token * dim + c] : 0.0f;
    if (kJacobian) shared.direction[c] = c < dim ? p.direction[token * dim + c] : 0.0f;
  }
  __syncthreads();
  const Codebook codebook(p.codebook, p.teacher.vocabulary, p.dim);
  const NoiseLevel level(p.t[token]);
  const auto write = [&](int c, const typename BlockSums<kDim, kJacobian>::Total& total) {
    // A NaN or infinity in x_t, t or u must come out.
    float check = p.t[token] * 0.0f;
    DD2_NO_UNROLL
    for (int n = 0; n < dim; ++n) {
      check += shared.x_t[n] * 0.0f + (kJacobian ? shared.direction[n] * 0.0f : 0.0f);
    }
    const float inverse = 1.0f / total.weight + check, x0 = total.mean * inverse;
    shared.x0[c] = x0;
    if (!kJacobian) return;
    shared.along[c] = level.jacobian * (total.spread * inverse - x0 * (total.along * inverse));
  };
  for (int first = static_cast<int>(blockIdx.y) * kDim; first < dim;
       first += static_cast<int>(gridDim.y) * kDim) {
    solve_dimensions<kDim, kJacobian>(codebook, row, kept, level, first, shared.x_t,
                                      shared.direction, block, write);
  }
  emit_token<kDim>(p, token, shared);
}

// Blocks that the registers of a multiprocessor shall hold, the most without spills.
template <LogitType kType, int kDim, bool kJacobian>
constexpr int blocks_on_processor() {
  return kDim <= 8 ? (kType == LogitType::kAny ? 2 : 3) : (kJacobian ? 1 : 2);
}

// grid (rows, padded_dim / kDim, or 1 with the loss); kAny: for filtered rows, kStaged: those that fit
// in shared memory.
template <LogitType kType, int kDim, bool kJacobian, bool kStaged>
__global__ void __launch_bounds__(kThreads, (blocks_on_processor<kType, kDim, kJacobian>()))
    conditional_score_fwd_kernel(const ConditionalScoreParams p) {
  DD2_DYNAMIC_SHARED(float, dynamic);
  const TokenVectors shared(dynamic, padded_dim<kDim>(p));
  float* staged = dynamic + vector_floats<kDim>(p);
  __shared__ Selection<kThreads> selection;
  __shared__ BlockSums<kDim, kJacobian> sums;
  const long long row_index = blockIdx.x;
  const GuidedRow<kType> row(p.teacher, row_index);
  const KeptCodes kept = keep_codes<kStaged>(row, p.teacher, staged, selection);
  if (kept.invalid) {
    for (long long c = threadIdx.x; c < p.dim; c += kThreads) {
      shared.x0[c] = shared.along[c] = quiet_nan();
    }
    __syncthreads();
    for (long long m = 0; m < p.draws; ++m) emit_token<kDim>(p, row_index * p.draws + m, shared);
    return;
  }
  for (long long m = 0; m < p.draws; ++m) {
    solve_token<kDim, kJacobian>(p, row, kept, row_index * p.draws + m, sums, shared);
  }
}

}  // namespace dd2
