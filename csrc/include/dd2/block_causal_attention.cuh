// Attention over blocks of tokens on NVIDIA GPUs, by tensor cores: an online softmax over tiles of
// keys.
//
// A query sees the keys before its limit and, in strict blocks, itself. A warp takes its queries by
// chunks of keys: those below all limits without a mask, those above all not at all. Unit queries and
// keys are factors of the scores,
//
//   S_ij = log2(e) scale gain q_i·k_j / (|q_i| |k_j|),   p_ij ∝ 2^(S_ij - m_i)
//
// so that nothing is rounded for them. m_i is a score that was the largest when it was taken, and
// gives way to one that is larger by kSlack: sums are scaled rarely, and by their own row alone. Where
// two warps share the keys of a tile, their sums are put together at the end.
#pragma once

#include "dd2/head_rows.cuh"

namespace dd2 {

constexpr float kSlack = 8.0f;               // halves hold weights of 2^8
constexpr float kShortestSquare = 1e-24f;    // of a vector that is divided by its length

DD2_DEVICE float inverse_root(float x) {
  float value = 0.0f;
#ifdef __CUDA_ARCH__
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
#endif
  return value;
}

// The inverse length of a vector, by its square.
DD2_DEVICE float inverse_length(float square) {
  return inverse_root(FloatMax()(square, kShortestSquare));
}

// How many keys a token sees from the first on.
DD2_DEVICE int key_limit(const BlockCausalAttentionParams& p, int token) {
  const int tokens = static_cast<int>(p.tokens);
  if (p.blocks == 0) return token < tokens ? token + 1 : tokens;
  int limit = p.strict ? 0 : tokens;
  DD2_NO_UNROLL
  for (int b = 0; b < p.blocks - 1; ++b) {
    const int end = p.ends.at[b];
    const bool before = token < end;
    if (p.strict && !before) limit = end;
    if (!p.strict && before && end < limit) limit = end;
  }
  return limit;
}

// The block's queries.
struct QueryBlock {
  int abreast;  // warps side by side over the queries
  int first;
  int last;  // before the end
  int head;  // of an image
  long long image;

  // gridDim.x: tiles of queries times heads times images; of a head, the longest come first.
  DD2_DEVICE QueryBlock(const BlockCausalAttentionParams& p, int rows) {
    const int tokens = static_cast<int>(p.tokens), heads = static_cast<int>(p.heads);
    const int count = static_cast<int>(gridDim.x / static_cast<unsigned>(p.heads * p.images));
    abreast = count == ceil_divide(tokens, 2 * rows) ? 2 : 4;
    const int of_head = static_cast<int>(blockIdx.x) / count;
    const int place = static_cast<int>(blockIdx.x) - of_head * count;
    first = (count - 1 - place) * abreast * rows;
    last = first + abreast * rows < tokens ? first + abreast * rows - 1 : tokens - 1;
    image = of_head / heads;
    head = of_head % heads;
  }
};

template <LogitType kType, int kSize>
class AttentionWarp {
 public:
  using Rows = HeadRows<kType, kSize>;
  static constexpr int kParts = Rows::kParts;
  static constexpr int kRows = attention_rows(kSize);
  static constexpr int kSixteens = kRows / 16;
  static constexpr int kColumns = kChunkKeys / 8;  // of a chunk's products
  static constexpr int kPlane = kTileKeys * Rows::kRow;
  static constexpr int kQueryPlane = kRows * Rows::kRow;

  using Scores = float[kSixteens][kColumns][4];

  // first: the warp's first query; queries: where their planes are; limits: theirs.
  DD2_DEVICE AttentionWarp(const BlockCausalAttentionParams& p, int first, SharedAddress queries,
                           const int* limits)
      : p_(p), first_(first), unit_(p.gain != nullptr), queries_(queries), limits_(limits),
        least_(limits[0]), most_(first < static_cast<int>(p.tokens) ? limits[kRows - 1] : 0) {
    DD2_UNROLL_ALL
    for (int i = 0; i < kSixteens; ++i) {
      offset_[i][0] = offset_[i][1] = kFloatMax;
      const SharedAddress rows = queries + i * 16 * Rows::kRow;
      if constexpr (kParts == 1) {
        DD2_UNROLL_ALL
        for (int k = 0; k < Rows::kSteps; ++k) {
          load_matrices(query_[i][k], rows + Rows::lane_place(k));
        }
      }
      factor_[i][0] = factor_[i][1] = kLog2E * p.scale;
      if (!unit_) continue;
      float square[2];
      Rows::template square<kQueryPlane>(square, rows);
      const int lane = lane_index(), from = lane / 4 * 4 + lane / 8;
      DD2_UNROLL_ALL
      for (int r = 0; r < 2; ++r) {
        factor_[i][r] *= inverse_length(__shfl_sync(kAllLanes, square[r], from));
      }
    }
  }

  DD2_DEVICE bool sees(int key) const {
    return key < most_ || (p_.strict && first_ < key + kChunkKeys && first_ + kRows > key);
  }

  // Takes the chunk from `key` on; factors: of its keys.
  DD2_DEVICE void attend(int key, SharedAddress keys, SharedAddress values, const float* factors) {
    Scores s = {};
    score(s, keys);
    if (unit_) {
      DD2_UNROLL_ALL
      for (int n = 0; n < kColumns; ++n) {
        const float2 factor = *reinterpret_cast<const float2*>(factors + 8 * n + 2 * quad_lane());
        DD2_UNROLL_ALL
        for (int i = 0; i < kSixteens; ++i) {
          DD2_UNROLL_ALL
          for (int e = 0; e < 4; ++e) s[i][n][e] *= e % 2 ? factor.y : factor.x;
        }
      }
    }
    if (key + kChunkKeys > least_) mask(s, key);
    weigh(s);
    mix(s, values);
  }

  // What a warp hands to another, or takes from it: floats kWarp fours apart.
  static constexpr int kHanded = kSixteens * (kSize / 8 + 1);  // fours of a lane

  DD2_DEVICE void hand_over(float4* to) const {
    DD2_UNROLL_ALL
    for (int i = 0; i < kSixteens; ++i) {
      *to = make_float4(offset_[i][0], offset_[i][1], sum_[i][0], sum_[i][1]);
      to += kWarp;
      DD2_UNROLL_ALL
      for (int c = 0; c < kSize / 8; ++c, to += kWarp) {
        *to = make_float4(out_[i][c][0], out_[i][c][1], out_[i][c][2], out_[i][c][3]);
      }
    }
  }

  DD2_DEVICE void take_over(const float4* from) {
    DD2_UNROLL_ALL
    for (int i = 0; i < kSixteens; ++i) {
      const float4 other = *from;
      from += kWarp;
      float mine[2], others[2];
      DD2_UNROLL_ALL
      for (int r = 0; r < 2; ++r) {
        const float offset = r ? other.y : other.x;
        const float smaller = offset < offset_[i][r] ? offset : offset_[i][r];
        mine[r] = exp2_flushed(smaller - offset_[i][r]);
        others[r] = exp2_flushed(smaller - offset);
        sum_[i][r] = fused_multiply_add(sum_[i][r], mine[r], (r ? other.w : other.z) * others[r]);
      }
      DD2_UNROLL_ALL
      for (int c = 0; c < kSize / 8; ++c, from += kWarp) {
        const float4 x = *from;
        const float values[4] = {x.x, x.y, x.z, x.w};
        DD2_UNROLL_ALL
        for (int e = 0; e < 4; ++e) {
          out_[i][c][e] = fused_multiply_add(out_[i][c][e], mine[e / 2], values[e] * others[e / 2]);
        }
      }
    }
  }

  // Divides by the sums and writes the warp's rows, by way of its part of shared memory.
  DD2_DEVICE void write(unsigned char* staged, const QueryBlock& block, bool vectors) {
    constexpr int kBytes = Rows::kBytes, kRow = kSize * kBytes, kEach = 16 / kBytes;
    constexpr int kAtOnce = kWarp * 16 / kRow;  // rows
    const auto place = [](int row, int byte) { return row * kRow + (byte ^ (row & 7) * 16); };
    const int lane = lane_index(), to = place(lane / 4, 2 * kBytes * quad_lane());
    DD2_UNROLL_ALL
    for (int n = 0; n < kSixteens * 2; ++n) {
      const int i = n / 2, r = n % 2;
      const float share = __fdividef(1.0f, quad_reduce(sum_[i][r], Add()));
      DD2_UNROLL_ALL
      for (int c = 0; c < kSize / 8; ++c) {
        float a = out_[i][c][2 * r] * share, b = out_[i][c][2 * r + 1] * share;
        unsigned char* target = staged + 8 * n * kRow + (to ^ 8 * kBytes * c);
        if constexpr (kBytes == 4) {
          *reinterpret_cast<float2*>(target) = make_float2(a, b);
        } else {
          *reinterpret_cast<unsigned*>(target) = take_part<kType>(a, b);
        }
      }
    }
    __syncwarp();
    const int size = static_cast<int>(p_.size), heads = static_cast<int>(p_.heads);
    const int tokens = static_cast<int>(p_.tokens), row = lane * 16 / kRow;
    const int channel = lane % (kRow / 16) * kEach, left = size - channel;
    const int rows = left <= 0 ? 0 : tokens - first_ < kRows ? tokens - first_ : kRows;
    const long long width = static_cast<long long>(heads) * size;
    unsigned char* target = static_cast<unsigned char*>(p_.out) +
                            ((block.image * tokens + first_ + row) * width +
                             static_cast<long long>(block.head) * size + channel) * kBytes;
    DD2_NO_UNROLL
    for (int i = row; i < rows; i += kAtOnce, target += kAtOnce * kBytes * width) {
      const unsigned char* from = staged + place(i, kBytes * channel);
      if (vectors) {
        *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(from);
      } else {
        DD2_NO_UNROLL
        for (int b = 0; b < kBytes * (left < kEach ? left : kEach); b += 2) {
          *reinterpret_cast<unsigned short*>(target + b) =
              *reinterpret_cast<const unsigned short*>(from + b);
        }
      }
    }
  }

 private:
  const BlockCausalAttentionParams& p_;
  const int first_;
  const bool unit_;
  const SharedAddress queries_;
  const int* limits_;
  const int least_, most_;
  unsigned query_[kParts == 1 ? kSixteens : 1][kParts == 1 ? Rows::kSteps : 1][4];
  float factor_[kSixteens][2];  // of S, of rows g and g + 8 of every sixteen
  float offset_[kSixteens][2];  // -m
  float sum_[kSixteens][2] = {};  // this lane's share
  float out_[kSixteens][kSize / 8][4] = {};

  // Sixteen n / kParts, part n % kParts, step k: from registers if there is one part alone.
  DD2_DEVICE void load_query(unsigned (&x)[4], int n, int k) const {
    if constexpr (kParts > 1) {
      const int at = n % kParts * kQueryPlane + n / kParts * 16 * Rows::kRow;
      load_matrices(x, queries_ + at + Rows::lane_place(k));
    } else {
      DD2_UNROLL_ALL
      for (int e = 0; e < 4; ++e) x[e] = query_[n][k][e];
    }
  }

  DD2_DEVICE void score(Scores& s, SharedAddress keys) const {
    DD2_UNROLL_ALL
    for (int k = 0; k < Rows::kSteps; ++k) {
      unsigned query[kSixteens][kParts][4];
      DD2_UNROLL_ALL
      for (int n = 0; n < kSixteens * kParts; ++n) load_query(query[n / kParts][n % kParts], n, k);
      DD2_UNROLL_ALL
      for (int j = 0; j < kColumns / 2; ++j) {
        DD2_UNROLL_ALL
        for (int b = kParts - 1; b >= 0; --b) {
          unsigned key[4];
          load_matrices(key, keys + b * kPlane + j * 16 * Rows::kRow + Rows::lane_place(k));
          DD2_UNROLL_ALL
          for (int n = 0; n < kSixteens * (kParts - b); ++n) {
            const int i = n % kSixteens, a = kParts - b - 1 - n / kSixteens;
            multiply_add_of<kType>(s[i][2 * j], query[i][a], key[0], key[2]);
            multiply_add_of<kType>(s[i][2 * j + 1], query[i][a], key[1], key[3]);
          }
        }
      }
    }
  }

  DD2_DEVICE void mask(Scores& s, int key) const {
    const int first = key + 2 * quad_lane();
    DD2_UNROLL_ALL
    for (int n = 0; n < kSixteens * 2; ++n) {
      const int i = n / 2, r = n % 2, row = 16 * i + 8 * r + lane_index() / 4;
      const int limit = limits_[row] - first, own = first_ + row - first;
      DD2_UNROLL_ALL
      for (int c = 0; c < kColumns * 2; ++c) {
        const int column = c / 2 * 8 + c % 2;
        float& x = s[i][c / 2][2 * r + c % 2];
        x = column < limit || column == own ? x : negative_infinity();
      }
    }
  }

  // Of a row of this lane's: row r of sixteen i.
  DD2_DEVICE static float largest(const Scores& s, int i, int r) {
    float best = fmaxf(s[i][0][2 * r], s[i][0][2 * r + 1]);
    DD2_UNROLL_ALL
    for (int c = 1; c < kColumns; ++c) {
      best = fmaxf(best, fmaxf(s[i][c][2 * r], s[i][c][2 * r + 1]));
    }
    return best;
  }

  // Whether a score is so much larger than m that it has to replace it.
  DD2_DEVICE bool rises(float score, int i, int r) const {
    return fused_multiply_add(score, factor_[i][r], offset_[i][r]) > kSlack;
  }

  // Weights of the scores, and their sums.
  DD2_DEVICE void weigh(Scores& s) {
    bool any = false;
    DD2_UNROLL_ALL
    for (int n = 0; n < kSixteens * 2; ++n) any |= rises(largest(s, n / 2, n % 2), n / 2, n % 2);
    if (__any_sync(kAllLanes, any)) raise(s);
    DD2_UNROLL_ALL
    for (int n = 0; n < kSixteens * kColumns * 4; ++n) {
      const int i = n / (4 * kColumns), c = n / 4 % kColumns, r = n % 4 / 2;
      float& x = s[i][c][n % 4];
      x = exp2_flushed(fused_multiply_add(x, factor_[i][r], offset_[i][r]));
      sum_[i][r] += x;
    }
  }

  // Replaces m of the rows that call for it.
  DD2_DEVICE void raise(const Scores& s) {
    DD2_UNROLL_ALL
    for (int n = 0; n < kSixteens * 2; ++n) {
      const int i = n / 2, r = n % 2;
      const float top = quad_reduce(largest(s, i, r), FloatMax());
      const float offset = rises(top, i, r) ? -top * factor_[i][r] : offset_[i][r];
      const float decay = exp2_flushed(offset - offset_[i][r]);
      offset_[i][r] = offset;
      sum_[i][r] *= decay;
      DD2_UNROLL_ALL
      for (int c = 0; c < kSize / 8; ++c) {
        out_[i][c][2 * r] *= decay;
        out_[i][c][2 * r + 1] *= decay;
      }
    }
  }

  DD2_DEVICE void mix(Scores& s, SharedAddress values) {
    DD2_UNROLL_ALL
    for (int j = 0; j < kColumns / 2; ++j) {
      unsigned weight[kSixteens][kParts][4];
      DD2_UNROLL_ALL
      for (int n = 0; n < kSixteens * kParts * 4; ++n) {
        const int i = n / 4 % kSixteens, a = n / (4 * kSixteens), e = n % 4;
        float(&pair)[4] = s[i][2 * j + e / 2];
        weight[i][a][e] = take_part<kType>(pair[2 * (e % 2)], pair[2 * (e % 2) + 1]);
      }
      DD2_UNROLL_ALL
      for (int c = 0; c < kSize / 16; ++c) {
        DD2_UNROLL_ALL
        for (int b = kParts - 1; b >= 0; --b) {
          unsigned value[4];
          load_matrices_transposed(value,
                                   values + b * kPlane + j * 16 * Rows::kRow + Rows::lane_place(c));
          DD2_UNROLL_ALL
          for (int n = 0; n < kSixteens * (kParts - b); ++n) {
            const int i = n % kSixteens, a = kParts - b - 1 - n / kSixteens;
            multiply_add_of<kType>(out_[i][2 * c], weight[i][a], value[0], value[1]);
            multiply_add_of<kType>(out_[i][2 * c + 1], weight[i][a], value[2], value[3]);
          }
        }
      }
    }
  }
};

template <LogitType kType, int kSize>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    block_causal_attention_fwd_kernel(const BlockCausalAttentionParams p) {
  using Rows = HeadRows<kType, kSize>;
  using Warp = AttentionWarp<kType, kSize>;
  constexpr int kStages = attention_stages(kType), kTile = attention_tile(kType, kSize);
  constexpr int kQueries = Rows::kParts * Warp::kQueryPlane;  // bytes of a warp's
  DD2_DYNAMIC_SHARED(unsigned char, shared);
  const QueryBlock block(p, Warp::kRows);
  const Rows rows(p, shared);
  // In shared memory: queries, stages of a tile of keys and one of values, factors of keys, limits.
  const int tiles = block.abreast * kQueries;
  float* factors = reinterpret_cast<float*>(shared + tiles + 2 * kStages * kTile);
  int* limits = reinterpret_cast<int*>(factors + kTileKeys);
  const int over = warp_index() % block.abreast, share = warp_index() / block.abreast;
  const int queries = block.abreast * Warp::kRows;
  const bool turned = p.rotary != nullptr, unit = p.gain != nullptr;
  const long long part = p.part_stride * Rows::kBytes;
  const char* head = static_cast<const char*>(p.qkv) +
                     (block.image * p.image_stride + block.head * p.head_stride) * Rows::kBytes;
  DD2_NO_UNROLL
  for (int w = 0; w < block.abreast; ++w) {
    const int first = block.first + w * Warp::kRows;
    rows.template load<Warp::kRows>(w * kQueries, rows.source(head, first), first, turned);
  }
  if (static_cast<int>(threadIdx.x) < queries) {
    const int query = block.first + static_cast<int>(threadIdx.x);
    limits[threadIdx.x] = key_limit(p, query < block.last ? query : block.last);
  }
  __syncthreads();
  // Tiles below the last query's limit and then, in strict blocks, the queries' own.
  const int limit = limits[queries - 1], own = block.first / kTileKeys;
  const int below = (limit + kTileKeys - 1) / kTileKeys;
  const int then = p.strict && below < own ? own : below;
  const int none = p.strict ? block.last / kTileKeys + 1 : below;
  const auto tile_after = [&](int tile) { return tile + 1 == below ? then : tile + 1; };
  const auto load = [&](int tile, int target) {
    const char* source = rows.source(head + part, tile * kTileKeys);
    rows.template load<kTileKeys>(target, source, tile * kTileKeys, turned);
    rows.template load<kTileKeys>(target + kTile, source + part, tile * kTileKeys, false);
  };
  int tile = below > 0 ? 0 : then, stage = tiles;
  load(tile, stage);
  wait_for_copies();
  __syncthreads();
  Warp warp(p, block.first + over * Warp::kRows, shared_address(shared) + over * kQueries,
            limits + over * Warp::kRows);
  const float gain = unit ? p.gain[block.head] : 1.0f;
  const int step = 4 / block.abreast * kChunkKeys;
  DD2_NO_UNROLL
  while (tile < none) {
    const int next = tile_after(tile), current = stage;
    if (kStages > 1) {
      stage = 2 * tiles + 2 * kTile - stage;  // the other one
      if (next < none) load(next, stage);
    }
    if (unit) {
      float square[2];
      const int first = 16 * warp_index(), lane = lane_index();
      Rows::template square<Warp::kPlane>(square,
                                          shared_address(shared) + current + first * Rows::kRow);
      if (lane / 8 == quad_lane()) {
        factors[first + lane / 4] = gain * inverse_length(square[0]);
        factors[first + 8 + lane / 4] = gain * inverse_length(square[1]);
      }
      __syncthreads();
    }
    DD2_NO_UNROLL
    for (int first = share * kChunkKeys; first < kTileKeys; first += step) {
      const int key = tile * kTileKeys + first;
      if (!warp.sees(key)) continue;
      const SharedAddress keys = shared_address(shared) + current + first * Rows::kRow;
      warp.attend(key, keys, keys + kTile, factors + first);
    }
    if (kStages == 1) {
      __syncthreads();
      if (next < none) load(next, stage);
    }
    wait_for_copies();
    __syncthreads();
    tile = next;
  }
  if (block.abreast == 2) {
    float4* handed = reinterpret_cast<float4*>(shared + tiles) + over * Warp::kHanded * kWarp;
    if (share == 1) warp.hand_over(handed + lane_index());
    __syncthreads();
    if (share == 1) return;
    warp.take_over(handed + lane_index());
  }
  warp.write(shared + over * kQueries, block, rows.vectors());
}

}  // namespace dd2
