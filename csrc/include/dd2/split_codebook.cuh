// The codebook as the tensor cores read it: less its centre and scaled by a power of two, every value
// the sum of two halves, in tiles that a block copies whole.
#pragma once

#include "dd2/dense_workspace.h"
#include "dd2/load_code.cuh"
#include "dd2/mma.cuh"
#include "dd2/posterior.cuh"

namespace dd2 {

// 2^exponent, -126 <= exponent <= 127, and floor(log2 |value|), 128 of a value that is not finite.
DD2_DEVICE float power_of_two(int exponent) {
  return __uint_as_float(static_cast<unsigned>(exponent + 127) << 23);
}
DD2_DEVICE int exponent_of(float value) {
  return static_cast<int>(__float_as_uint(value) >> 23 & 0xffu) - 127;
}
DD2_DEVICE int clamp(int value, int low, int high) {
  return value < low ? low : value > high ? high : value;
}

// A tile of kTileCodes codes of kDim values: for each position the high halves, then the low ones,
// in chunks of eight; then half the squared length of every code, in order of the codes.
template <int kDim>
struct CodeTile {
  static constexpr int kHighChunks = kDim / 8;
  static constexpr int kChunks = 2 * kHighChunks;
  static constexpr int kRow = kChunks * 16;            // bytes of a position
  static constexpr int kNorms = kTileCodes * kRow;     // where they begin
  static constexpr int kBytes = dense_tile_bytes(kDim);

  // Where a chunk begins: eight positions' chunks of one index lie in different banks.
  DD2_DEVICE static int offset(int position, int chunk) {
    const int turn = kChunks == 4 ? position >> 1 & 3 : position & 7;
    return (position * kChunks + (chunk ^ turn)) * 16;
  }

  // The code at a position. Eight neighbouring codes of 32 belong to one lane of every four in a
  // product's columns, so that a lane reads eight neighbouring logits.
  DD2_DEVICE static int code(int position) {
    const int tile = position / 8 % 4, column = position % 8;
    return position / 32 * 32 + column / 2 * 8 + tile * 2 + column % 2;
  }
};

// About the mean code, that of some 64 all over the codebook, 0 where they are not finite: products
// with codes less it lose no digits to where the codebook is. Every block finds it by itself.
template <int kDim>
DD2_DEVICE void find_centre(const ConditionalScoreParams& p, float (&centre)[kDim]) {
  constexpr int kParts = kThreads / kDim;
  __shared__ float partial[kThreads];
  const int c = static_cast<int>(threadIdx.x) % kDim, part = static_cast<int>(threadIdx.x) / kDim;
  const long long step = (p.teacher.vocabulary + 63) / 64;
  const float share = 1.0f / static_cast<float>((p.teacher.vocabulary + step - 1) / step);
  float sum = 0.0f;
  for (long long j = part * step; c < p.dim && j < p.teacher.vocabulary; j += kParts * step) {
    sum = fused_multiply_add(p.codebook[j * p.dim + c], share, sum);
  }
  partial[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x < kDim) {
    for (int n = 1; n < kParts; ++n) sum += partial[n * kDim + c];
    centre[c] = __builtin_fabsf(sum) <= kFloatMax ? sum : 0.0f;
  }
  __syncthreads();
}

// The exponent that brings the largest value less the centre into [1, 2), found likewise.
DD2_DEVICE int codebook_exponent(const ConditionalScoreParams& p, const float* centre) {
  const long long count = p.teacher.vocabulary * p.dim;
  const int dim = static_cast<int>(p.dim);
  const bool vectors = codes_are_vectors<4>(p.codebook, p.dim);
  const int width = vectors ? 4 : 1, step = width * kThreads % dim;
  int c = width * static_cast<int>(threadIdx.x) % dim;
  float largest = 0.0f;
  for (long long i = width * static_cast<int>(threadIdx.x); i < count; i += width * kThreads) {
    if (vectors) {
      const float4 v = *reinterpret_cast<const float4*>(p.codebook + i);
      const float x = v.x - centre[c], y = v.y - centre[c + 1];
      const float z = v.z - centre[c + 2], w = v.w - centre[c + 3];
      largest = Max()(Max()(Max()(__builtin_fabsf(x), __builtin_fabsf(y)),
                            Max()(__builtin_fabsf(z), __builtin_fabsf(w))),
                      largest);
    } else {
      largest = Max()(__builtin_fabsf(p.codebook[i] - centre[c]), largest);
    }
    c += c + step < dim ? step : step - dim;
  }
  return clamp(-exponent_of(block_reduce(largest, Max())), -60, 60);
}

// grid (at most tiles): every block splits each gridDim.x-th tile.
template <int kDim>
__global__ void __launch_bounds__(kThreads) split_codebook_kernel(const ConditionalScoreParams p) {
  using Tile = CodeTile<kDim>;
  const DenseWorkspace work(p);
  __shared__ float centre[kDim];
  find_centre(p, centre);
  const int exponent = codebook_exponent(p, centre);
  const float scale = power_of_two(exponent);
  if (blockIdx.x == 0 && threadIdx.x == 0) *work.exponent = exponent;
  if (blockIdx.x == 0 && threadIdx.x < kDim) work.centre[threadIdx.x] = centre[threadIdx.x];
  const auto value = [&](long long code, long long c) {
    const bool inside = code < p.teacher.vocabulary && c < p.dim;
    return inside ? (p.codebook[code * p.dim + c] - centre[c]) * scale : 0.0f;
  };
  for (long long t = blockIdx.x; t < work.tile_count(p); t += gridDim.x) {
    unsigned char* tile = work.tiles + t * Tile::kBytes;
    for (int i = threadIdx.x; i < kTileCodes * Tile::kHighChunks; i += kThreads) {
      const int position = i / Tile::kHighChunks, chunk = i % Tile::kHighChunks;
      const long long code = t * kTileCodes + Tile::code(position);
      unsigned high[4], low[4];
      for (int n = 0; n < 4; ++n) {
        const SplitPair pair =
            split_nearest(value(code, 8 * chunk + 2 * n), value(code, 8 * chunk + 2 * n + 1));
        high[n] = pair.high;
        low[n] = pair.low;
      }
      *reinterpret_cast<uint4*>(tile + Tile::offset(position, chunk)) =
          make_uint4(high[0], high[1], high[2], high[3]);
      *reinterpret_cast<uint4*>(tile + Tile::offset(position, Tile::kHighChunks + chunk)) =
          make_uint4(low[0], low[1], low[2], low[3]);
    }
    if (threadIdx.x >= kTileCodes) continue;
    // The cancellation against the product with x costs digits: none shall be lost here.
    double square = 0.0;
    for (long long c = 0; c < p.dim; ++c) {
      const double v = value(t * kTileCodes + threadIdx.x, c);
      square += v * v;
    }
    reinterpret_cast<float*>(tile + Tile::kNorms)[threadIdx.x] = static_cast<float>(0.5 * square);
  }
}

}  // namespace dd2
