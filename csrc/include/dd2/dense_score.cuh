// The conditional score by tensor cores, for rows of which many codes count: a block of 64 tokens
// streams the codebook's tiles through shared memory, a warp folds 32 codes at a time into 16 tokens.
//
//   S_j = log2(e) l_j - log2(e)/(2 t^2) |x - (1-t) c_j|^2,   w_j = 2^(S_j - m)
//
// The squared distance is expanded, x·c_j a product of matrices, and so are sum w c and sum w z c
// with z_j = (c_j - c_ref)·u. m and c_ref are those of a code that was the best when it was taken
// and is replaced when eight others' weights are together 2^5 times as large. Codes are taken less
// their centre m, tokens less (1-t) m. Every factor is a sum of two halves; of the four products that
// of the two low parts is left out. What the expansion loses grows as |x - (1-t) m| / t:
// direct_score_fwd_kernel takes the tokens where it is too much.
#pragma once

#include "dd2/csd_loss.cuh"
#include "dd2/dense_products.cuh"
#include "dd2/logit_groups.cuh"
#include "dd2/mma.cuh"

namespace dd2 {

template <LogitType kType, int kDim, bool kJacobian, bool kFiltered>
struct DenseWarp {
  using Tile = CodeTile<kDim>;

  // Whether the next codes' logits are loaded a step ahead, into registers that J u has not left.
  static constexpr bool kAhead = !kJacobian;

  const ConditionalScoreParams& p;
  const bool vectors;
  TileLanes<kDim> lanes;
  DenseTokens<kDim, kJacobian> tokens;
  DenseSums<kDim, kJacobian> sums;
  LogitGroups<kType> logits;
  float threshold[2];

  DD2_DEVICE DenseWarp(const ConditionalScoreParams& params, float* totals)
      : p(params), vectors(rows_are_vectors<kType>(params.teacher)), sums(totals) {
    const DenseWorkspace work(p);
    const long long token[2] = {lane_token(p, 0), lane_token(p, 1)};
    tokens.load(p, token, *work.exponent);
    DD2_UNROLL_ALL
    for (int r = 0; r < 2; ++r) {
      const long long row = token[r] / p.draws;
      logits.set_row(r, p.teacher, row);
      threshold[r] = kFiltered ? work.kept[row].threshold : -kFloatMax;
      anchor(r, token[r], *work.exponent);
    }
    if (kAhead) load_logits(0);
  }

  // The row of this lane's token r.
  DD2_DEVICE GuidedRow<kType> row(int r) const {
    return GuidedRow<kType>(p.teacher, lane_token(p, r) / p.draws);
  }

  // The first code of the row that counts, or 0; the warp searches the rows of its tokens together,
  // 32 codes at a time: where few are kept, it waits for memory many times.
  DD2_DEVICE int first_code(int r, const GuidedRow<kType>& row) const {
    const int vocabulary = static_cast<int>(p.teacher.vocabulary);
    int found = -vocabulary;
    for (int first = 0; first < vocabulary; first += kStepCodes) {
      int mine = -vocabulary;
      DD2_UNROLL_ALL
      for (int n = kStepCodes / 4 - 1; n >= 0; --n) {
        const int j = first + 4 * n + quad_lane();
        const float logit = j < vocabulary ? row(j) : negative_infinity();
        const bool counts = logit >= threshold[r] && __builtin_fabsf(logit) <= kFloatMax;
        mine = counts ? -j : mine;
      }
      found = Max()(found, quad_reduce(mine, Max()));
      if (__all_sync(kAllLanes, found > -vocabulary)) break;
    }
    return found > -vocabulary ? -found : 0;
  }

  // Takes m and c_ref of a code that counts.
  DD2_DEVICE void anchor(int r, long long token, int code_exponent) {
    const GuidedRow<kType> row(p.teacher, token / p.draws);
    const int first = first_code(r, row);
    float product = 0.0f, along = 0.0f, u_scale = 0.0f;
    if constexpr (kJacobian) u_scale = power_of_two(direction_exponent(p, token));
    for (long long c = quad_lane(); c < p.dim; c += 4) {
      const float centre = DenseWorkspace(p).centre[c];
      const float code = (p.codebook[first * p.dim + c] - centre) * power_of_two(code_exponent);
      const float x = centred(p, token, c) * tokens.x_scale[r];
      product += code * (x - 0.5f * tokens.norm_gain[r] * code);
      if constexpr (kJacobian) {
        along += code * (p.direction[token * p.dim + c] * u_scale);
      }
    }
    product = quad_reduce(product, Add()) - tokens.origin[r];
    sums.along_best[r] = quad_reduce(along, Add());
    // Logits far from zero shall lose no digits: they enter relative to this one.
    const float logit = row(first), near = __builtin_fabsf(logit) <= kFloatMax ? logit : 0.0f;
    sums.offset[r] = kReferenceWeight - fused_multiply_add(tokens.gain[r], product, kLog2E * near);
  }

  // This lane's logits of the codes from `code` on.
  DD2_DEVICE void load_logits(int code) {
    const int j = code + 8 * quad_lane();
    if (vectors && code + kStepCodes <= p.teacher.vocabulary) return logits.load(p.teacher, j);
    DD2_UNROLL_ALL
    for (int r = 0; r < 2; ++r) logits.load_one_by_one(r, row(r), j, p.teacher.vocabulary);
  }

  template <bool kGuided>
  DD2_DEVICE void offset_logits(float (&score)[4][4]) const {
    DD2_UNROLL_ALL
    for (int n = 0; n < 16; ++n) {
      const int r = n % 4 / 2, i = n / 4 * 2 + n % 2;
      const float logit = kGuided ? logits.guided(r, i) : logits.cond[r][i];
      const float value = fused_multiply_add(logit, kLog2E, sums.offset[r]);
      score[n / 4][n % 4] = !kFiltered || logit >= threshold[r] ? value : negative_infinity();
    }
  }

  // Scores of 32 codes of which some are large or not finite: codes that are ruled out leave, and m
  // moves to the best of the rest.
  DD2_DEVICE void settle(float (&score)[4][4], float (&z)[kJacobian ? 4 : 1][4], int code) {
    code += 8 * quad_lane();
    DD2_UNROLL_ALL
    for (int r = 0; r < 2; ++r) {
      float best = negative_infinity(), moved = negative_infinity();
      bool finite = true;
      DD2_UNROLL_ALL
      for (int n = 0; n < 8; ++n) finite = finite && score[n / 2][2 * r + n % 2] <= kFloatMax;
      if (!finite) {
        const GuidedRow<kType> logits_row = row(r);
        DD2_UNROLL_ALL
        for (int n = 0; n < 8; ++n) {
          if (ruled_out(p.teacher, logits_row, code + n)) {
            score[n / 2][2 * r + n % 2] = negative_infinity();
          }
        }
      }
      DD2_UNROLL_ALL
      for (int n = 0; n < 8; ++n) best = Max()(score[n / 2][2 * r + n % 2], best);
      best = quad_reduce(best, Max());
      if constexpr (kJacobian) {
        DD2_UNROLL_ALL
        for (int n = 0; n < 8; ++n) {
          if (score[n / 2][2 * r + n % 2] == best) moved = Max()(z[n / 2][2 * r + n % 2], moved);
        }
        moved = quad_reduce(moved, Max());
      }
      if (!(best > kReferenceWeight)) continue;
      // As rounded, so that earlier and later weights agree.
      const float offset = sums.offset[r] - (best - kReferenceWeight);
      const float shift = sums.offset[r] - offset;
      const float along_best = sums.along_best[r] + moved;
      moved = along_best - sums.along_best[r];
      sums.offset[r] = offset;
      sums.along_best[r] = along_best;
      DD2_UNROLL_ALL
      for (int n = 0; n < 8; ++n) {
        score[n / 2][2 * r + n % 2] -= shift;
        if constexpr (kJacobian) z[n / 2][2 * r + n % 2] -= moved;
      }
      sums.rebase(r, shift, moved);
    }
  }

  // S - m, and z, of the 32 codes from `code` on, whose halves lie at `step` and norms at `norms`.
  DD2_DEVICE void score_codes(float (&score)[4][4], float (&z)[kJacobian ? 4 : 1][4],
                              SharedAddress step, const float* norms) const {
    norms += 8 * quad_lane();
    DD2_UNROLL_ALL
    for (int i = 0; i < 4; ++i) {
      float product[4];
      DD2_UNROLL_ALL
      for (int e = 0; e < 4; ++e) {
        product[e] = fused_multiply_add(-tokens.norm_gain[e / 2], norms[2 * i + e % 2],
                                        -tokens.origin[e / 2]);
        if constexpr (kJacobian) z[i][e] = -sums.along_best[e / 2];
      }
      DD2_UNROLL_ALL
      for (int n = 0; n < Tile::kChunks; n += 4) {
        unsigned codes[4];
        load_matrices(codes, step + lanes.at(lanes.across, n) + i * 8 * Tile::kRow);
        DD2_UNROLL_ALL
        for (int m = 0; m < 4; m += 2) {
          tokens.x.multiply(product, n + m, codes[m], codes[m + 1]);
          if constexpr (kJacobian) tokens.u.multiply(z[i], n + m, codes[m], codes[m + 1]);
        }
      }
      DD2_UNROLL_ALL
      for (int e = 0; e < 4; ++e) {
        score[i][e] = fused_multiply_add(tokens.gain[e / 2], product[e], score[i][e]);
      }
    }
  }

  // Weights of the scores, and their sum for each of this lane's tokens.
  DD2_DEVICE static void weigh(const float (&score)[4][4], float (&weight)[4][4], float (&sum)[2]) {
    sum[0] = sum[1] = 0.0f;
    DD2_UNROLL_ALL
    for (int n = 0; n < 16; ++n) {
      weight[n / 4][n % 4] = exp2_flushed(score[n / 4][n % 4]);
      sum[n % 4 / 2] += weight[n / 4][n % 4];
    }
  }

  // Adds the codes' weighted values; overwrites z.
  DD2_DEVICE void add_codes(const float (&weight)[4][4], float (&z)[kJacobian ? 4 : 1][4],
                            SharedAddress step) {
    DD2_UNROLL_ALL
    for (int k = 0; k < 4; k += 2) {
      const WeightOperand weights(weight[k], weight[k + 1]);
      if constexpr (kJacobian) {
        DD2_UNROLL_ALL
        for (int n = 0; n < 8; ++n) {
          float& value = z[k + n / 4][n % 4];
          value *= weight[k + n / 4][n % 4];
          sums.along[n % 4 / 2] += value;
        }
      }
      const WeightOperand weighted(z[kJacobian ? k : 0], z[kJacobian ? k + 1 : 0]);
      DD2_UNROLL_ALL
      for (int n = 0; n < Tile::kChunks; n += 2) {
        unsigned codes[4];
        load_matrices_transposed(codes, step + lanes.at(lanes.down, n) + k * 8 * Tile::kRow);
        weights.multiply(sums.mean, n, codes[0], codes[1]);
        weights.multiply(sums.mean, n + 1, codes[2], codes[3]);
        if constexpr (kJacobian) {
          weighted.multiply(sums.spread, n, codes[0], codes[1]);
          weighted.multiply(sums.spread, n + 1, codes[2], codes[3]);
        }
      }
    }
  }

  // Folds in the 32 codes from `code` on.
  DD2_DEVICE void step(int code, SharedAddress codes, const float* norms) {
    float score[4][4], weight[4][4], sum[2], z[kJacobian ? 4 : 1][4] = {};
    if (!kAhead) load_logits(code);
    p.teacher.uncond != nullptr ? offset_logits<true>(score) : offset_logits<false>(score);
    if (kAhead) load_logits(code + kStepCodes);
    score_codes(score, z, codes, norms);
    weigh(score, weight, sum);
    const bool settled = sum[0] <= kLargestSum && sum[1] <= kLargestSum;
    if (__any_sync(kAllLanes, !settled)) {
      settle(score, z, code);
      weigh(score, weight, sum);
    }
    DD2_UNROLL_ALL
    for (int r = 0; r < 2; ++r) sums.weight[r] += sum[r];
    add_codes(weight, z, codes);
  }
};

// Turns a warp's sums into x0 and J u, in place of the totals.
template <int kDim, bool kJacobian>
DD2_DEVICE void finish_tokens(const ConditionalScoreParams& p,
                              DenseSums<kDim, kJacobian>& sums) {
  sums.move_to_totals();
  const DenseWorkspace work(p);
  const float unit = power_of_two(-*work.exponent);
  DD2_UNROLL_ALL
  for (int r = 0; r < 2; ++r) {
    const float inverse = 1.0f / quad_reduce(sums.weight[r], Add());
    const float along = quad_reduce(sums.along[r], Add()) * inverse;
    float factor = 0.0f, u_unit = 0.0f;
    if constexpr (kJacobian) {
      factor = NoiseLevel(p.t[lane_token(p, r)]).jacobian;
      u_unit = power_of_two(-direction_exponent(p, lane_token(p, r)));
    }
    for (int n = 0; n < kDim / 4; ++n) {
      float& mean = sums.mean_total.at(r, n);
      mean *= inverse;
      if constexpr (kJacobian) {
        float& spread = sums.spread_total.at(r, n);
        spread = (spread * inverse - mean * along) * unit * unit * u_unit * factor;
      }
      mean = fused_multiply_add(mean, unit, work.centre[n / 2 * 8 + 2 * quad_lane() + n % 2]);
    }
  }
  __syncwarp();
}

// Writes what is wanted of a warp's tokens, two lanes each; x0 and J u lie as LaneValues.
template <int kDim>
DD2_DEVICE void emit_tokens(const ConditionalScoreParams& p, const float* x0, const float* along) {
  const long long first = first_token(), count = p.teacher.rows * p.draws;
  const int index = lane_index() / 2, part = lane_index() % 2;
  const bool inside = first + index < count;
  const long long token = inside ? first + index : count - 1, row = token / p.draws;
  const bool wanted = inside && !needs_direct(p, token);
  x0 += index * LaneValues<kDim>::kStride;
  along += index * LaneValues<kDim>::kStride;
  for (long long c = part; wanted && c < p.dim; c += 2) {
    if (p.out != nullptr) p.out[token * p.dim + c] = x0[c];
    if (p.jacobian != nullptr) p.jacobian[token * p.dim + c] = along[c];
  }
  if (p.csd.loss == nullptr) return;
  CsdSums loss = csd_sums(p.csd, row, token, p.dim, x0, part, 2);
  loss.value += __shfl_xor_sync(kAllLanes, loss.value, 1);
  loss.distance += __shfl_xor_sync(kAllLanes, loss.distance, 1);
  if (!wanted) return;
  csd_write(p.csd, row, token, p.dim, x0, p.direction != nullptr ? along : nullptr, loss, part, 2);
}

// Blocks that the registers of a multiprocessor shall hold, the most without spills.
template <LogitType kType, int kDim, bool kJacobian>
DD2_HD constexpr int dense_blocks_on_processor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  constexpr int kMost = 3;  // its pairs of registers are harder to place
#else
  constexpr int kMost = 4;
#endif
  return kMost - kJacobian - (kDim > 32) - (kType == LogitType::kFloat32);
}

// Where in shared memory the tile of codes from `code` on is: one of two places.
template <int kDim>
DD2_DEVICE int tile_place(int code) {
  return code & kTileCodes ? CodeTile<kDim>::kBytes : 0;
}

// Starts this thread's share of the copy of that tile.
template <int kDim>
DD2_DEVICE void copy_tile(const ConditionalScoreParams& p, unsigned char* shared, int code) {
  constexpr int kBytes = CodeTile<kDim>::kBytes, kStride = 16 * kDenseThreads;
  const long long tile_offset = static_cast<long long>(code / kTileCodes) * kBytes;
  const unsigned char* tile = DenseWorkspace(p).tiles + tile_offset;
  const SharedAddress place = shared_address(shared) + tile_place<kDim>(code);
  DD2_UNROLL_ALL
  for (int n = 0; n < kBytes; n += kStride) {
    const int i = n + 16 * static_cast<int>(threadIdx.x);
    if (n + kStride > kBytes && i >= kBytes) break;
    copy_to_shared(place + i, tile + i);
  }
}

// grid (ceil(tokens / kDenseTokens)), after split_codebook_kernel and, where the rows are filtered,
// row_filter_kernel.
template <LogitType kType, int kDim, bool kJacobian, bool kFiltered>
__global__ void
__launch_bounds__(kDenseThreads, (dense_blocks_on_processor<kType, kDim, kJacobian>()))
    dense_score_fwd_kernel(const ConditionalScoreParams p) {
  using Tile = CodeTile<kDim>;
  DD2_DYNAMIC_SHARED(unsigned char, shared);
  float* totals = reinterpret_cast<float*>(shared + 2 * Tile::kBytes);
  copy_tile<kDim>(p, shared, 0);
  DenseWarp<kType, kDim, kJacobian, kFiltered> warp(p, totals);
  for (int code = 0; code < p.teacher.vocabulary; code += kStepCodes) {
    const int step = code % kTileCodes;
    if (step == 0) {
      wait_for_copies();
      __syncthreads();  // this tile is there, and the place of the next is no longer read
      const int next = code + kTileCodes;
      if (next < p.teacher.vocabulary) copy_tile<kDim>(p, shared, next);
      if (code % kCodesInSums == 0) warp.sums.move_to_totals();
    }
    const unsigned char* tile = shared + tile_place<kDim>(code);
    warp.step(code, shared_address(tile) + step * Tile::kRow,
              reinterpret_cast<const float*>(tile + Tile::kNorms) + step);
  }
  finish_tokens(p, warp.sums);
  float* results = totals + warp_index() * kWarpTokens * LaneValues<kDim>::kStride;
  emit_tokens<kDim>(p, results, results + warp.sums.kValues);
}

}  // namespace dd2
