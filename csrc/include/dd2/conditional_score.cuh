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

// Softmax sums over the codes seen so far, relative to the best of them:
// w_j = exp2((s_j - best) exponent), z_j = (c_j - c_best)·u.
template <int kDim, bool kJacobian>
struct Posterior {
  float best;
  float weight;      // sum w
  float mean[kDim];  // sum w c
  float along_best;  // c_best·u
  float along;       // sum w z
  float spread[kJacobian ? kDim : 1];  // sum w z c

  DD2_DEVICE void clear() {
    best = negative_infinity();
    weight = along_best = along = 0.0f;
    for (int c = 0; c < kDim; ++c) mean[c] = 0.0f;
    for (int c = 0; c < (kJacobian ? kDim : 1); ++c) spread[c] = 0.0f;
  }

  // Moves to a new best code: z shifts by the change of c_best·u, then everything shrinks.
  DD2_DEVICE void rebase(float score, float along_new, float exponent) {
    const float shrink = weight > 0.0f ? exp2f((best - score) * exponent) : 0.0f;
    const float shift = along_best - along_new;
    if (kJacobian) {
      for (int c = 0; c < kDim; ++c) spread[c] = (spread[c] + shift * mean[c]) * shrink;
      along = (along + shift * weight) * shrink;
    }
    for (int c = 0; c < kDim; ++c) mean[c] *= shrink;
    weight *= shrink;
    best = score;
    along_best = along_new;
  }

  DD2_DEVICE void add(float score, const float (&code)[kDim], float along_code, float exponent) {
    if (score > best) rebase(score, along_code, exponent);
    const float w = exp2f((score - best) * exponent);
    weight += w;
    for (int c = 0; c < kDim; ++c) mean[c] = fused_multiply_add(w, code[c], mean[c]);
    if (kJacobian) {
      const float wz = w * (along_code - along_best);
      along += wz;
      for (int c = 0; c < kDim; ++c) spread[c] = fused_multiply_add(wz, code[c], spread[c]);
    }
  }

  DD2_DEVICE void merge(Posterior& other, float exponent) {
    if (other.weight == 0.0f) return;
    if (weight == 0.0f || other.best > best) {
      rebase(other.best, other.along_best, exponent);
    } else {
      other.rebase(best, along_best, exponent);
    }
    weight += other.weight;
    along += other.along;
    for (int c = 0; c < kDim; ++c) mean[c] += other.mean[c];
    if (kJacobian) {
      for (int c = 0; c < kDim; ++c) spread[c] += other.spread[c];
    }
  }

  DD2_DEVICE Posterior from_lane(int offset) const {
    Posterior other;
    other.best = __shfl_xor_sync(kAllLanes, best, offset);
    other.weight = __shfl_xor_sync(kAllLanes, weight, offset);
    other.along_best = __shfl_xor_sync(kAllLanes, along_best, offset);
    other.along = __shfl_xor_sync(kAllLanes, along, offset);
    for (int c = 0; c < kDim; ++c) other.mean[c] = __shfl_xor_sync(kAllLanes, mean[c], offset);
    if (kJacobian) {
      for (int c = 0; c < kDim; ++c) {
        other.spread[c] = __shfl_xor_sync(kAllLanes, spread[c], offset);
      }
    }
    return other;
  }

  // Of each `lanes` neighbouring lanes, for all of them.
  DD2_DEVICE void merge_lanes(int lanes, float exponent) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      Posterior other = from_lane(offset);
      merge(other, exponent);
    }
  }
};

template <int kDim, typename Params>
DD2_HD long long padded_dim(const Params& p) {
  return (p.dim + kDim - 1) / kDim * kDim;
}

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
  DD2_DEVICE bool moves(float best, const float* codebook, int dim, const KeptCodes& kept,
                        const NoiseLevel& level, const float* x_t) {
    const float noise = 2.0f * level.two_t2 * static_cast<float>(dim);  // four times its square
    if (-best <= noise || is_code) return false;
    const float* first = codebook + kept.code(0) * dim;
    const float* last = codebook + kept.code(kept.count - 1) * dim;
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

// The sums over this thread's share of the kept codes, in dimensions [first, first + kDim), at the
// token `x_t` and along `direction` in shared memory.
template <int kDim, bool kJacobian, typename Row>
DD2_DEVICE Posterior<kDim, kJacobian> fold_codes(const float* codebook, long long dim,
                                                 const Row& row, const KeptCodes& kept,
                                                 const NoiseLevel& level, long long first,
                                                 const float* x_t, const DistanceOrigin& origin,
                                                 const float* direction) {
  const int begin = static_cast<int>(first), last = begin + kDim, end = static_cast<int>(dim);
  const bool vectors = codes_are_vectors<kDim>(codebook, dim);
  Posterior<kDim, kJacobian> sums;
  sums.clear();
  kept.for_each(row, [&](long long j, float logit) {
    float code[kDim];
    load_code(codebook + j * dim, first, dim, vectors, code);
    float distance = 0.0f, along = 0.0f;
    const auto include = [&](float value, long long c) {
      const float difference = fused_multiply_add(-level.signal, value, x_t[c]);
      distance = fused_multiply_add(difference, difference, distance);
      if (kJacobian) along = fused_multiply_add(value, direction[c], along);
    };
    if (origin.is_code) {
      measure_far_code<kJacobian>(codebook + j * dim, end, level.signal, x_t,
                                  codebook + kept.code(0) * dim, direction, distance, along);
    } else {
      for (int c = 0; c < kDim; ++c) include(code[c], first + c);
      DD2_NO_UNROLL
      for (int c = begin > 0 ? 0 : last; c < end; c = c + 1 == begin ? last : c + 1) {
        include(codebook[j * dim + c], c);
      }
    }
    const float score = fused_multiply_add(level.two_t2, logit - kept.largest, -distance);
    sums.add(score, code, along, level.exponent);
  });
  return sums;
}

// Dimensions [first, first + kDim) of a token's x0 and J u, left in `shared`: every thread folds its
// share of the codes, then warps and block are merged.
template <int kDim, bool kJacobian, typename Row>
DD2_DEVICE void solve_dimensions(const ConditionalScoreParams& p, const Row& row,
                                 const KeptCodes& kept, long long token, long long first,
                                 Posterior<kDim, kJacobian>* merged, const TokenVectors& shared) {
  const NoiseLevel level(p.t[token]);
  const long long last = first + kDim;
  DistanceOrigin origin;
  for (;;) {
    Posterior<kDim, kJacobian> sums = fold_codes<kDim, kJacobian>(
        p.codebook, p.dim, row, kept, level, first, shared.x_t, origin, shared.direction);
    sums.merge_lanes(kWarp, level.exponent);
    if (lane_index() == 0) merged[warp_index()] = sums;
    __syncthreads();
    if (warp_index() == 0) {
      sums = merged[lane_index() % kWarps];
      sums.merge_lanes(kWarps, level.exponent);
      __syncwarp();
      if (lane_index() == 0) merged[0] = sums;
    }
    __syncthreads();
    if (!origin.moves(merged[0].best, p.codebook, p.dim, kept, level, shared.x_t)) break;
    __syncthreads();  // every warp has read merged[0]
  }
  // A NaN or infinity in x_t, t or u must come out.
  float check = p.t[token] * 0.0f;
  for (long long c = 0; c < p.dim; ++c) {
    check += shared.x_t[c] * 0.0f + (kJacobian ? shared.direction[c] * 0.0f : 0.0f);
  }
  const Posterior<kDim, kJacobian>& total = merged[0];
  const float inverse = 1.0f / total.weight + check;
  for (long long c = first + threadIdx.x; c < last && c < p.dim; c += kThreads) {
    const float x0 = total.mean[c - first] * inverse;
    shared.x0[c] = x0;
    if (kJacobian) {
      shared.along[c] = level.jacobian * (total.spread[kJacobian ? c - first : 0] * inverse -
                                          x0 * (total.along * inverse));
    }
  }
  __syncthreads();
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
                            long long token, Posterior<kDim, kJacobian>* merged,
                            const TokenVectors& shared) {
  const long long padded = padded_dim<kDim>(p);
  for (long long c = threadIdx.x; c < padded; c += kThreads) {
    shared.x_t[c] = c < p.dim ? p.x_t[token * p.dim + c] : 0.0f;
    if (kJacobian) shared.direction[c] = c < p.dim ? p.direction[token * p.dim + c] : 0.0f;
  }
  __syncthreads();
  for (long long first = static_cast<long long>(blockIdx.y) * kDim; first < p.dim;
       first += static_cast<long long>(gridDim.y) * kDim) {
    solve_dimensions(p, row, kept, token, first, merged, shared);
  }
  emit_token<kDim>(p, token, shared);
}

// Floats of dynamic shared memory that a block needs.
template <int kDim, bool kStaged>
DD2_HD long long conditional_score_shared_floats(const ConditionalScoreParams& p) {
  return 4 * padded_dim<kDim>(p) + (kStaged ? p.teacher.staged_floats() : 0);
}

// Blocks a row of logits takes.
template <int kDim>
DD2_HD unsigned conditional_score_blocks(const ConditionalScoreParams& p) {
  return p.csd.loss != nullptr ? 1u : static_cast<unsigned>(padded_dim<kDim>(p) / kDim);
}

// Blocks that the registers of a multiprocessor shall hold, the most without spills.
template <int kDim, bool kJacobian, bool kStaged>
constexpr int blocks_on_processor() {
  return kDim <= 8 ? (kJacobian || kStaged ? 3 : 4) : (kJacobian ? 1 : 2);
}

// grid (rows, conditional_score_blocks); kStaged: for filtered rows that fit in shared memory.
template <LogitType kType, int kDim, bool kJacobian, bool kStaged>
__global__ void __launch_bounds__(kThreads, (blocks_on_processor<kDim, kJacobian, kStaged>()))
    conditional_score_fwd_kernel(const ConditionalScoreParams p) {
  DD2_DYNAMIC_SHARED(float, dynamic);
  const TokenVectors shared(dynamic, padded_dim<kDim>(p));
  float* staged = dynamic + conditional_score_shared_floats<kDim, false>(p);
  __shared__ Selection selection;
  __shared__ Posterior<kDim, kJacobian> merged[kWarps];
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
    solve_token<kDim, kJacobian>(p, row, kept, row_index * p.draws + m, merged, shared);
  }
}

}  // namespace dd2
