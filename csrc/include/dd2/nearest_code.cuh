// The nearest code on NVIDIA GPUs: argmax_j x·c_j - |c_j|^2 / 2.
//
// A lane holds its tokens in registers, codes are dealt to the block's warps, or to parts of their
// lanes, in turn, and the winners meet in shared memory. A code's norm is summed beside its products,
// in one order for all codes, so that equal codes tie exactly.
#pragma once

#include "dd2/load_code.cuh"
#include "dd2/nearest_code.h"
#include "dd2/posterior.cuh"

namespace dd2 {

// How a block's lanes share its tokens and the codes; kFew: for launches of few tokens, whose
// blocks of 128 would leave multiprocessors idle.
template <bool kFew>
struct NearestShape {
  static constexpr int kTokens = kFew ? 1 : 4;             // of a lane
  static constexpr int kLanes = kFew ? kWarp / 4 : kWarp;  // that visit the same codes
  static constexpr int kStreams = kThreads / kLanes;       // stream s visits code s, s + kStreams, ...
  static constexpr int kBlockTokens = nearest_block_tokens(kFew);
  static_assert(kBlockTokens == kTokens * kLanes, "every lane has its tokens");
};

template <int kDim, int kTokens>
DD2_DEVICE void load_tokens(const NearestCodeParams& p, long long first_token, int lanes,
                            long long first, float (&x)[kTokens][kDim]) {
  for (int i = 0; i < kTokens; ++i) {
    long long token = first_token + i * lanes + lane_index() % lanes;
    token = token < p.rows ? token : p.rows - 1;
    for (int c = 0; c < kDim; ++c) {
      x[i][c] = first + c < p.dim ? p.x[token * p.dim + first + c] : 0.0f;
    }
  }
}

// grid (ceil(rows / kBlockTokens)); kWide: dim is above kDim, tokens are reloaded kDim at a time.
template <int kDim, bool kWide, bool kFew>
__global__ void __launch_bounds__(kThreads) nearest_code_fwd_kernel(const NearestCodeParams p) {
  using Shape = NearestShape<kFew>;
  constexpr int kTokens = Shape::kTokens;
  __shared__ float scores[Shape::kStreams][Shape::kBlockTokens];
  __shared__ int codes[Shape::kStreams][Shape::kBlockTokens];
  const long long first_token = static_cast<long long>(blockIdx.x) * Shape::kBlockTokens;
  const int stream = static_cast<int>(threadIdx.x) / Shape::kLanes;
  const bool vectors = codes_are_vectors<kDim>(p.codebook, p.dim);
  float x[kTokens][kDim], best[kTokens];
  int best_code[kTokens];
  for (int i = 0; i < kTokens; ++i) {
    best[i] = negative_infinity();
    best_code[i] = -1;
  }
  if (!kWide) load_tokens(p, first_token, Shape::kLanes, 0, x);
  for (long long j = stream; j < p.vocabulary; j += Shape::kStreams) {
    float product[kTokens] = {}, norm = 0.0f;
    for (long long first = 0; first < (kWide ? p.dim : 1); first += kDim) {
      float code[kDim];
      load_code(p.codebook + j * p.dim, first, p.dim, vectors, code);
      if (kWide) load_tokens(p, first_token, Shape::kLanes, first, x);
      for (int c = 0; c < kDim; ++c) {
        norm = fused_multiply_add(code[c], code[c], norm);
        for (int i = 0; i < kTokens; ++i) {
          product[i] = fused_multiply_add(x[i][c], code[c], product[i]);
        }
      }
    }
    for (int i = 0; i < kTokens; ++i) {
      const float score = fused_multiply_add(-0.5f, norm, product[i]);
      if (score > best[i]) {
        best[i] = score;
        best_code[i] = static_cast<int>(j);
      }
    }
  }
  for (int i = 0; i < kTokens; ++i) {
    const int t = i * Shape::kLanes + lane_index() % Shape::kLanes;
    scores[stream][t] = best[i];
    codes[stream][t] = best_code[i];
  }
  __syncthreads();
  const int t = static_cast<int>(threadIdx.x);
  const long long token = first_token + t;
  if (t >= Shape::kBlockTokens || token >= p.rows) return;
  float score = negative_infinity();
  int code = -1;
  for (int s = 0; s < Shape::kStreams; ++s) {
    const bool first_of_equals = scores[s][t] == score && codes[s][t] < code;
    if (scores[s][t] > score || first_of_equals) {
      score = scores[s][t];
      code = codes[s][t];
    }
  }
  float square = 0.0f;  // |x|^2: not finite with a NaN or infinity
  for (long long c = 0; c < p.dim; ++c) square += p.x[token * p.dim + c] * p.x[token * p.dim + c];
  p.out[token] = square < -negative_infinity() ? code : -1;
}

}  // namespace dd2
