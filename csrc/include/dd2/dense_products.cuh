// What the tensor-core kernel of the conditional score multiplies and adds up: a warp's 16 tokens
// by codes, their weights by codes, and the sums that result.
#pragma once

#include "dd2/conditional_score.h"
#include "dd2/mma.cuh"
#include "dd2/posterior.cuh"
#include "dd2/split_codebook.cuh"

namespace dd2 {

constexpr int kStepCodes = 32;
constexpr int kCodesInSums = 256;  // before they are moved to totals

// log2 of the weight of the code that m is of, and the most that eight weights may sum to: weights
// times z below 4 stay within a half's range, and small weights above the end of it.
constexpr float kReferenceWeight = 8.0f;
constexpr float kLargestSum = 8192.0f;

// An error of a few 2^-24 |x|^2 in the distance moves x0 by that over t.
constexpr float kSmallestDenseNoise = 0.02f;
constexpr float kLargestDenseRatio = 1000.0f;

// x - (1-t) m in dimension c of a token, m being the centre of the codebook.
DD2_DEVICE float centred(const ConditionalScoreParams& p, long long token, long long c) {
  const float m = DenseWorkspace(p).centre[c];
  return fused_multiply_add(p.t[token], m, p.x_t[token * p.dim + c] - m);
}

// Whether a token is left to direct differences.
DD2_DEVICE bool needs_direct(const ConditionalScoreParams& p, long long token) {
  const float t = p.t[token], limit = kLargestDenseRatio * t;
  float square = 0.0f;
  for (long long c = 0; c < p.dim; ++c) {
    const float x = centred(p, token, c);
    square = fused_multiply_add(x, x, square);
  }
  return !(t >= kSmallestDenseNoise && square <= limit * limit);
}

// Of this warp.
DD2_DEVICE long long first_token() {
  return static_cast<long long>(blockIdx.x) * kDenseTokens + warp_index() * kWarpTokens;
}

// The token of row lane / 4 + 8 r of a warp's fragments; the last one again beyond the end.
DD2_DEVICE long long lane_token(const ConditionalScoreParams& p, int r) {
  const long long token = first_token() + lane_index() / 4 + 8 * r;
  const long long last = p.teacher.rows * p.draws - 1;
  return token < last ? token : last;
}

// A warp's 16 vectors as the left factor of a product: value(r, c) of this lane's two tokens.
template <int kDim>
struct Operand {
  unsigned high[kDim / 16][4];
  unsigned low[kDim / 16][4];

  template <typename Value>
  DD2_DEVICE void load(long long dim, const Value& value) {
    DD2_UNROLL_ALL
    for (int n = 0; n < kDim / 4; ++n) {
      const int s = n / 4, i = n % 4, r = i % 2, c = 16 * s + 8 * (i / 2) + 2 * quad_lane();
      const SplitPair pair = split_nearest(c < dim ? value(r, c) : 0.0f,
                                           c + 1 < dim ? value(r, c + 1) : 0.0f);
      high[s][i] = pair.high;
      low[s][i] = pair.low;
    }
  }

  // result += vectors · two chunks of eight codes, low halves of codes from kHighChunks on.
  DD2_DEVICE void multiply(float (&result)[4], int chunk, unsigned b0, unsigned b1) const {
    const int s = chunk / 2 % (kDim / 16);
    multiply_add(result, high[s], b0, b1);
    if (chunk < CodeTile<kDim>::kHighChunks) multiply_add(result, low[s], b0, b1);
  }
};

// u is taken times 2^this, which brings sum |u| into [1/2, 1); by the four lanes of a token.
DD2_DEVICE int direction_exponent(const ConditionalScoreParams& p, long long token) {
  float length = 0.0f;
  for (long long c = quad_lane(); c < p.dim; c += 4) {
    length += __builtin_fabsf(p.direction[token * p.dim + c]);
  }
  return clamp(-1 - exponent_of(quad_reduce(length, Add())), -100, 100);
}

// What a warp's products need of its tokens; [2]: of this lane's two.
template <int kDim, bool kJacobian>
struct DenseTokens {
  Operand<kDim> x;
  Operand<kJacobian ? kDim : 16> u;
  float gain[2];       // of S in units of the product
  float norm_gain[2];  // of the product in units of a code's norm
  float origin[2];     // |x|^2 / (2 (1-t)) in units of the product, which it keeps small; or 0
  float x_scale[2];

  DD2_DEVICE void load(const ConditionalScoreParams& p, const long long (&token)[2],
                       int code_exponent) {
    DD2_UNROLL_ALL
    for (int r = 0; r < 2; ++r) {
      float largest = 0.0f, square = 0.0f;
      for (long long c = quad_lane(); c < p.dim; c += 4) {
        largest = Max()(__builtin_fabsf(centred(p, token[r], c)), largest);
      }
      // The codebook's scale, or less where x would leave a half's range.
      const int room = 9 - exponent_of(quad_reduce(largest, Max()));
      const int exponent = clamp(room < code_exponent ? room : code_exponent, -100, 60);
      x_scale[r] = power_of_two(exponent);
      for (long long c = quad_lane(); c < p.dim; c += 4) {
        const float value = centred(p, token[r], c) * x_scale[r];
        square = fused_multiply_add(value, value, square);
      }
      const NoiseLevel level(p.t[token[r]]);
      const float ratio = power_of_two(clamp(code_exponent - exponent, 0, 100));
      const float signal = level.signal > 1e-3f ? level.signal : 1e-3f;
      gain[r] = 2.0f * level.signal * level.exponent * power_of_two(-code_exponent) *
                power_of_two(-exponent);
      norm_gain[r] = level.signal / ratio;
      // 0 for a token far from all codes, which are shorter than 2 sqrt(dim) at their scale.
      const float length = quad_reduce(square, Add()) * ratio, reach = 4.0f * level.signal;
      const bool far = length * ratio > reach * reach * static_cast<float>(p.dim);
      origin[r] = far ? 0.0f : length * (0.5f / signal);
    }
    x.load(p.dim, [&](int r, int c) { return centred(p, token[r], c) * x_scale[r]; });
    if constexpr (kJacobian) {
      float scale[2];
      DD2_UNROLL_ALL
      for (int r = 0; r < 2; ++r) scale[r] = power_of_two(direction_exponent(p, token[r]));
      u.load(p.dim, [&](int r, int c) { return p.direction[token[r] * p.dim + c] * scale[r]; });
    }
  }
};

// This lane's share of its warp's results in shared memory, as a product leaves it: value n of
// token r is in dimension 8 (n / 2) + 2 quad_lane() + n % 2.
template <int kDim>
struct LaneValues {
  static constexpr int kCount = kDim / 4;
  static constexpr int kStride = dense_stride(kDim);
  float* first;

  DD2_DEVICE explicit LaneValues(float* block) {
    const int token = warp_index() * kWarpTokens + static_cast<int>(threadIdx.x % kWarp) / 4;
    first = block + token * kStride + 2 * quad_lane();
  }

  DD2_DEVICE float& at(int r, int n) const { return first[8 * r * kStride + n / 2 * 8 + n % 2]; }

  template <typename Change>
  DD2_DEVICE void each(int r, float (&sums)[kDim / 8][4], const Change& change) const {
    DD2_UNROLL_ALL
    for (int n = 0; n < kCount; ++n) change(at(r, n), sums[n / 2][2 * r + n % 2]);
  }
};

// Sums over the codes so far of a warp's 16 tokens; [2]: this lane's share for its two, or, of
// `offset` and `along_best`, their values. mean and spread are a product's result, which tensor
// cores cut off at every addition: now and then they are moved to totals in shared memory.
template <int kDim, bool kJacobian>
struct DenseSums {
  static constexpr int kValues = kDenseTokens * LaneValues<kDim>::kStride;  // of each total

  float mean[kDim / 8][4] = {};                    // sum w c
  float spread[kJacobian ? kDim / 8 : 1][4] = {};  // sum w z c
  float weight[2] = {};                            // sum w
  float along[2] = {};                             // sum w z
  float along_best[2] = {};                        // c_ref·u
  float offset[2] = {};                            // of log2(e) l, -m within
  LaneValues<kDim> mean_total;
  LaneValues<kDim> spread_total;

  DD2_DEVICE explicit DenseSums(float* totals)
      : mean_total(totals), spread_total(totals + (kJacobian ? kValues : 0)) {
    DD2_UNROLL_ALL
    for (int r = 0; r < 2; ++r) {
      for (int n = 0; n < kDim / 4; ++n) mean_total.at(r, n) = spread_total.at(r, n) = 0.0f;
    }
  }

  DD2_DEVICE void move_to_totals() {
    const auto move = [](float& total, float& sum) {
      total += sum;
      sum = 0.0f;
    };
    DD2_UNROLL_ALL
    for (int r = 0; r < 2; ++r) {
      mean_total.each(r, mean, move);
      if constexpr (kJacobian) spread_total.each(r, spread, move);
    }
  }

  // Moves m of token r by `shift`, which its scores have taken already, and c_ref to z = `moved`.
  DD2_DEVICE void rebase(int r, float shift, float moved) {
    const float shrink = exp2f(-shift);
    if constexpr (kJacobian) {
      DD2_UNROLL_ALL
      for (int n = 0; n < kDim / 4; ++n) {
        float &total = spread_total.at(r, n), &sum = spread[n / 2][2 * r + n % 2];
        total = (total - moved * mean_total.at(r, n)) * shrink;
        sum = (sum - moved * mean[n / 2][2 * r + n % 2]) * shrink;
      }
      along[r] = (along[r] - moved * weight[r]) * shrink;
    }
    mean_total.each(r, mean, [=](float& total, float& sum) {
      total *= shrink;
      sum *= shrink;
    });
    weight[r] *= shrink;
  }
};

// Where a lane points the loads of a tile's matrices, from the tile's start. Chunks 2, 4 and 8 on
// are a bit of the address apart.
template <int kDim>
struct TileLanes {
  int across;  // codes as columns: eight positions, chunks 0 to 3
  int down;    // codes as rows: sixteen positions, chunks 0 and 1

  DD2_DEVICE TileLanes() {
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    across = CodeTile<kDim>::offset(lane & 7, lane >> 3);
    down = CodeTile<kDim>::offset(lane & 15, lane >> 4);
  }

  // The same lanes' place `chunk` chunks on, an even number, of four at least for `across`.
  DD2_DEVICE static int at(int place, int chunk) { return place ^ chunk * 16; }
};

// Weights of 16 codes as the left factor of a product.
struct WeightOperand {
  unsigned high[4];
  unsigned low[4];

  DD2_DEVICE WeightOperand(const float (&first)[4], const float (&second)[4]) {
    DD2_UNROLL_ALL
    for (int i = 0; i < 4; ++i) {
      const float(&w)[4] = i < 2 ? first : second;
      const SplitPair pair = split_cut(w[2 * (i % 2)], w[2 * (i % 2) + 1]);
      high[i] = pair.high;
      low[i] = pair.low;
    }
  }

  // sums[chunk] += weights · codes in dimensions 8 chunk to 8 chunk + 7; low parts have chunks from
  // kHighChunks on.
  template <int kSums>
  DD2_DEVICE void multiply(float (&sums)[kSums][4], int chunk, unsigned b0, unsigned b1) const {
    multiply_add(sums[chunk % kSums], high, b0, b1);
    if (chunk < kSums) multiply_add(sums[chunk], low, b0, b1);
  }
};

}  // namespace dd2
