// The probability-flow ODE from noise to a code on NVIDIA GPUs: a block takes all steps of a row's
// draws.
//
// A row is staged, filtered and compacted once, and keeps its logits in shared memory too where they
// fit: the steps then read nothing but codes.
#pragma once

#include "dd2/conditional_score.cuh"
#include "dd2/flow_solve.h"

namespace dd2 {

// A token's vectors in shared memory, each padded with zeros to a multiple of kDim.
struct FlowVectors {
  float* x;
  float* ahead;     // where Euler's step leads
  float* velocity;  // at x
  float* mean;      // x0 where it was last wanted

  DD2_DEVICE FlowVectors(float* shared, long long padded)
      : x(shared), ahead(shared + padded), velocity(shared + 2 * padded),
        mean(shared + 3 * padded) {}
};

// The posterior mean of the token `x` at a noise level, to `mean`; both in shared memory.
template <int kDim, typename Row>
DD2_DEVICE void posterior_mean(const FlowSolveParams& p, const Row& row, const KeptCodes& kept,
                               const NoiseLevel& level, const float* x,
                               BlockSums<kDim, false>& block, float* mean) {
  const Codebook codebook(p.codebook, p.teacher.vocabulary, p.dim);
  const auto write = [&](int c, const auto& total) { mean[c] = total.mean / total.weight; };
  for (int first = 0; first < codebook.dim; first += kDim) {
    solve_dimensions<kDim, false>(codebook, row, kept, level, first, x, nullptr, block, write);
  }
}

// Takes all steps from v.x; the end point is left in v.mean.
template <int kDim, typename Row>
DD2_DEVICE void integrate(const FlowSolveParams& p, const Row& row, const KeptCodes& kept,
                          BlockSums<kDim, false>& block,
                          const FlowVectors& v) {
  const int steps = static_cast<int>(p.steps), dim = static_cast<int>(p.dim);
  const int means = p.heun ? 2 * steps - 1 : steps;
  const float count = static_cast<float>(steps);
  for (int n = 0; n < means; ++n) {
    const bool corrects = p.heun && n % 2 == 1;
    const int level = steps - (p.heun ? (n + 1) / 2 : n);
    const float t = static_cast<float>(level) / count;
    const float* x = corrects ? v.ahead : v.x;
    posterior_mean(p, row, kept, NoiseLevel(t), x, block, v.mean);
    if (n == means - 1) return;
    for (int c = threadIdx.x; c < dim; c += kThreads) {
      const float velocity = (x[c] - v.mean[c]) / t;
      if (corrects) {
        v.x[c] -= 0.5f / count * (v.velocity[c] + velocity);
      } else {
        v.velocity[c] = velocity;
        (p.heun ? v.ahead : v.x)[c] = v.x[c] - velocity / count;
      }
    }
    __syncthreads();
  }
}

// The kept code nearest to `x` in shared memory, the first on ties; -1 where none is at a finite
// distance.
template <int kDim, typename Row>
DD2_DEVICE long long nearest_kept(const FlowSolveParams& p, const Row& row, const KeptCodes& kept,
                                  const float* x) {
  using Key = unsigned long long;  // distance above code, as one number
  constexpr Key kNone = ~Key{0};
  const bool vectors = codes_are_vectors<kDim>(p.codebook, p.dim);
  Key nearest = kNone;
  kept.for_each(row, [&](int code_index) {
    const long long j = code_index;
    float distance = 0.0f;
    for (int first = 0; first < static_cast<int>(p.dim); first += kDim) {
      float code[kDim];
      load_code(p.codebook + j * p.dim, first, p.dim, vectors, code);
      for (int c = 0; c < kDim; ++c) {
        const float difference = code[c] - x[first + c];
        distance = fused_multiply_add(difference, difference, distance);
      }
    }
    if (!(distance <= kFloatMax)) return;
    nearest = Min()(static_cast<Key>(__float_as_uint(distance)) << 32 | j, nearest);
  });
  nearest = block_reduce(nearest, Min());
  return nearest == kNone ? -1 : static_cast<long long>(nearest & 0xffffffffu);
}

// Whether no value of the codebook is NaN or infinite.
DD2_DEVICE bool codebook_is_finite(const FlowSolveParams& p) {
  const long long size = p.teacher.vocabulary * p.dim;
  const bool vectors = codes_are_vectors<4>(p.codebook, size);
  float check = 0.0f;
  for (long long i = 4 * static_cast<long long>(threadIdx.x); i < size; i += 4 * kThreads) {
    float values[4];
    load_code(p.codebook, i, size, vectors, values);
    for (int c = 0; c < 4; ++c) check = fused_multiply_add(values[c], 0.0f, check);
  }
  return block_sum(check) == 0.0f;
}

// Reads a token's noise; false where it has a NaN or infinity.
template <int kDim>
DD2_DEVICE bool read_noise(const FlowSolveParams& p, long long token, const FlowVectors& v) {
  float check = 0.0f;
  for (long long c = threadIdx.x; c < padded_dim<kDim>(p); c += kThreads) {
    const float value = c < p.dim ? p.noise[token * p.dim + c] : 0.0f;
    v.x[c] = v.ahead[c] = value;
    check += value * 0.0f;
  }
  return block_sum(check) == 0.0f;
}

// grid (rows, any number of blocks that share a row's draws); kStaged: for rows that fit in shared
// memory. Two blocks a multiprocessor leave the registers that it takes not to spill.
template <int kDim, bool kStaged>
__global__ void __launch_bounds__(kThreads, 2) flow_solve_fwd_kernel(const FlowSolveParams p) {
  DD2_DYNAMIC_SHARED(float, dynamic);
  const FlowVectors vectors(dynamic, padded_dim<kDim>(p));
  float* staged = dynamic + vector_floats<kDim>(p);
  __shared__ Selection<kThreads> selection;
  __shared__ BlockSums<kDim, false> block;
  const long long row_index = blockIdx.x;
  const GuidedRow<LogitType::kAny> row(p.teacher, row_index);
  KeptCodes kept = keep_codes<kStaged>(row, p.teacher, staged, selection);
  const bool valid = !kept.invalid && codebook_is_finite(p);
  if (kStaged) keep_logits(row, p.teacher.vocabulary, staged, kept);
  for (int m = blockIdx.y; m < static_cast<int>(p.draws); m += gridDim.y) {
    const long long token = row_index * p.draws + m;
    long long code = -1;
    if (valid && read_noise<kDim>(p, token, vectors)) {
      integrate(p, row, kept, block, vectors);
      code = nearest_kept<kDim>(p, row, kept, vectors.mean);
    }
    if (threadIdx.x == 0) p.out[token] = code;
  }
}

}  // namespace dd2
