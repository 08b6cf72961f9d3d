// The conditional score on NVIDIA GPUs: one block a row of logits, online softmax over the kept codes.
//
// A filtered row's guided logits are staged in shared memory once, its threshold found there and the
// kept codes' indices compacted in place; every draw of the row then visits only those. An unfiltered
// row streams its logits. Distances are direct differences, so small noise levels lose no digits.
// A block accumulates kDim output dimensions; wider codes take one block for every kDim of them.
#pragma once

#include "dd2/block.cuh"
#include "dd2/conditional_score.h"
#include "dd2/filter_row.cuh"
#include "dd2/guided_row.cuh"
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
};

// The codes of a row that its filters keep: their indices in shared memory, or all of them.
struct KeptCodes {
  const int* indices;  // null: codes 0, 1, ..., count - 1 whose logit is at least `threshold`
  long long count;
  float threshold;
  float largest;  // logit
};

// One token: every thread folds its share of the codes, then warps and block are merged.
// `x_shared` has room for x_t and u, padded to kDim beyond the last dimension.
template <int kDim, bool kJacobian, typename Row>
DD2_DEVICE void solve_token(const ConditionalScoreParams& p, const Row& row, const KeptCodes& kept,
                            long long token, Posterior<kDim, kJacobian>* merged, float* x_shared) {
  const NoiseLevel level(p.t[token]);
  const long long first = static_cast<long long>(blockIdx.y) * kDim, last = first + kDim;
  const long long padded = static_cast<long long>(gridDim.y) * kDim;
  const bool vectors = codes_are_vectors<kDim>(p.codebook, p.dim);
  float* u_shared = x_shared + padded;
  __syncthreads();
  for (long long c = threadIdx.x; c < padded; c += kThreads) {
    x_shared[c] = c < p.dim ? p.x_t[token * p.dim + c] : 0.0f;
    if (kJacobian) u_shared[c] = c < p.dim ? p.direction[token * p.dim + c] : 0.0f;
  }
  __syncthreads();
  Posterior<kDim, kJacobian> sums;
  sums.clear();
  for (long long i = threadIdx.x; i < kept.count; i += kThreads) {
    const long long j = kept.indices == nullptr ? i : kept.indices[i];
    const float logit = row(j);
    if (!(logit >= kept.threshold) || logit == negative_infinity()) continue;
    float code[kDim];
    load_code(p.codebook + j * p.dim, first, p.dim, vectors, code);
    float distance = 0.0f, along = 0.0f;
    const auto include = [&](float value, long long c) {
      const float difference = fused_multiply_add(-level.signal, value, x_shared[c]);
      distance = fused_multiply_add(difference, difference, distance);
      if (kJacobian) along = fused_multiply_add(value, u_shared[c], along);
    };
    for (int c = 0; c < kDim; ++c) include(code[c], first + c);
    for (long long c = 0; c < p.dim; ++c) {
      if (c < first || c >= last) include(p.codebook[j * p.dim + c], c);
    }
    sums.add(fused_multiply_add(level.two_t2, logit - kept.largest, -distance), code, along, level.exponent);
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    Posterior<kDim, kJacobian> other = sums.from_lane(offset);
    sums.merge(other, level.exponent);
  }
  if (lane_index() == 0) merged[warp_index()] = sums;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; ++w) merged[0].merge(merged[w], level.exponent);
  }
  __syncthreads();
  // A NaN or infinity in x_t, t or u must come out.
  float check = p.t[token] * 0.0f;
  for (long long c = 0; c < padded; ++c) {
    check += x_shared[c] * 0.0f + (kJacobian ? u_shared[c] * 0.0f : 0.0f);
  }
  const Posterior<kDim, kJacobian>& total = merged[0];
  const float inverse = 1.0f / total.weight + check;
  for (long long c = first + threadIdx.x; c < last && c < p.dim; c += kThreads) {
    const float x0 = total.mean[c - first] * inverse;
    p.out[token * p.dim + c] =
        kJacobian ? level.jacobian * (total.spread[kJacobian ? c - first : 0] * inverse -
                                      x0 * (total.along * inverse))
                  : x0;
  }
}

// Floats of dynamic shared memory that a block needs.
template <int kDim, bool kStaged>
DD2_HD long long conditional_score_shared_floats(const ConditionalScoreParams& p) {
  const long long padded = (p.dim + kDim - 1) / kDim * kDim;
  return 2 * padded + (kStaged ? p.teacher.vocabulary : 0);
}

// grid (rows, ceil(dim / kDim)); kStaged: for filtered rows that fit in shared memory.
template <LogitType kType, int kDim, bool kJacobian, bool kStaged>
__global__ void __launch_bounds__(kThreads) conditional_score_fwd_kernel(
    const ConditionalScoreParams p) {
  DD2_DYNAMIC_SHARED(float, x_shared);
  float* staged = x_shared + conditional_score_shared_floats<kDim, false>(p);
  __shared__ Candidates candidates;
  __shared__ Posterior<kDim, kJacobian> merged[kWarps];
  const long long row_index = blockIdx.x;
  const GuidedRow<kType> row(p.teacher, row_index);
  const long long vocabulary = p.teacher.vocabulary;
  if (kStaged) {
    for (long long j = threadIdx.x; j < vocabulary; j += kThreads) staged[j] = row(j);
    __syncthreads();
  }
  const RowFilter filter = kStaged ? filter_row(StagedRow{staged}, p.teacher, candidates)
                                   : filter_row(row, p.teacher, candidates);
  if (filter.invalid) {
    for (long long i = threadIdx.x; blockIdx.y == 0 && i < p.draws * p.dim; i += kThreads) {
      p.out[row_index * p.draws * p.dim + i] = quiet_nan();
    }
    return;
  }
  KeptCodes kept{nullptr, vocabulary, filter.threshold, filter.largest};
  if (kStaged) {
    // Indices overwrite logits that every thread has read: they never run ahead of the reads.
    int* indices = reinterpret_cast<int*>(staged);
    long long count = 0;
    for (long long first = 0; first < vocabulary; first += kThreads) {
      const long long j = first + threadIdx.x;
      const bool keep =
          j < vocabulary && staged[j] >= kept.threshold && staged[j] > negative_infinity();
      const Position position = block_position(keep);
      if (keep) indices[count + position.index] = static_cast<int>(j);
      count += position.total;
    }
    kept.indices = indices;
    kept.count = count;
  }
  for (long long m = 0; m < p.draws; ++m) {
    solve_token<kDim, kJacobian>(p, row, kept, row_index * p.draws + m, merged, x_shared);
  }
}

}  // namespace dd2
