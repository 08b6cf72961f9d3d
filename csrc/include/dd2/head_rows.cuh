// Rows of a head, queries, keys or values, in shared memory as tensor cores read them: each of its
// parts a plane of rows of `kSize` halves, whose chunks of eight lie so that those of one index of
// eight neighbouring rows are in different banks.
#pragma once

#include "dd2/block_causal_attention.h"
#include "dd2/channel_group.cuh"
#include "dd2/posterior.cuh"

namespace dd2 {

// d += A B of halves, or of bfloat16s.
template <LogitType kType>
DD2_DEVICE void multiply_add_of(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  if constexpr (kType == LogitType::kFloat16) {
    multiply_add(d, a, b0, b1);
  } else {
    multiply_add_bfloat16(d, a, b0, b1);
  }
}

// Both rounded to halves or bfloat16s; what is left of floats stays in their place.
template <LogitType kType>
DD2_DEVICE unsigned take_part(float& first, float& second) {
  if constexpr (kType == LogitType::kFloat16) {
    return pack_halves(first, second);
  } else {
    const unsigned pair = pack_bfloat16(first, second);
    if constexpr (kType == LogitType::kFloat32) {
      const float a = __uint_as_float(pair << 16), b = __uint_as_float(pair & 0xffff0000u);
      first = __builtin_fabsf(a) <= kFloatMax ? first - a : 0.0f;
      second = __builtin_fabsf(b) <= kFloatMax ? second - b : 0.0f;
    }
    return pair;
  }
}

template <LogitType kType, int kSize>
class HeadRows {
 public:
  static constexpr int kBytes = kType == LogitType::kFloat32 ? 4 : 2;
  static constexpr int kParts = attention_parts(kType);
  static constexpr int kChunks = kSize / 8;
  static constexpr int kRow = 16 * kChunks;
  static constexpr int kSteps = kSize / 16;                   // of a product over the channels
  static constexpr int kAtOnce = kAttentionThreads / kChunks;  // rows that the block copies
  static constexpr int kTogether = 2;  // rows of a thread on their way to its registers

  DD2_DEVICE HeadRows(const BlockCausalAttentionParams& p, unsigned char* shared)
      : p_(p), shared_(shared), vectors_(are_vectors(p)),
        token_bytes_(static_cast<int>(p.token_stride) * kBytes),
        chunk_(static_cast<int>(threadIdx.x) % kChunks),
        row_(static_cast<int>(threadIdx.x) / kChunks) {}

  // Whether all rows, and those of the result, are whole groups of 16 bytes.
  DD2_DEVICE bool vectors() const { return vectors_; }

  DD2_DEVICE static int place(int row, int chunk) {
    return (row * kChunks + (chunk ^ (row & 7))) * 16;
  }

  // Where a lane points the loads of 16 rows by 16 channels, for step k of a product.
  DD2_DEVICE static int lane_place(int k) {
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    return place(lane & 15, lane >> 4) ^ 32 * k;
  }

  // This thread's part of the rows of tokens from `first` on, of which it takes every kAtOnce-th.
  DD2_DEVICE const char* source(const char* head, int first) const {
    return head + static_cast<long long>(first + row_) * token_bytes_ + 8 * kBytes * chunk_;
  }

  // kRows tokens from `first` on into the rows at `target`, zeros beyond the last token and channel.
  // The thread waits for its copies later. `source`: of the first token.
  template <int kRows>
  DD2_DEVICE void load(int target, const char* source, int first, bool turned) const {
    const long long step = static_cast<long long>(kAtOnce) * token_bytes_;
    const int left = static_cast<int>(p_.size) - 8 * chunk_, tokens = static_cast<int>(p_.tokens);
    target += place(row_, chunk_);
    if (kParts == 1 && vectors_ && !turned) {
      const SharedAddress to = shared_address(shared_) + target;
      if (static_cast<int>(p_.size) == kSize && first + kRows <= tokens) {
        DD2_UNROLL_ALL
        for (int i = 0; i < kRows / kAtOnce; ++i, source += step) {
          copy_to_shared(to + i * kAtOnce * kRow, source);
        }
        return;
      }
      DD2_UNROLL_ALL
      for (int i = 0; i < kRows / kAtOnce; ++i, source += step) {
        const bool there = left > 0 && first + row_ + i * kAtOnce < tokens;
        copy_to_shared_or_zero(to + i * kAtOnce * kRow, source, there);
      }
      return;
    }
    int token = first + row_;
    const int count = left > 0 ? tokens : 0, size = static_cast<int>(p_.size);
    long long at = static_cast<long long>(token) * size + 8 * chunk_;  // in the table
    DD2_NO_UNROLL
    for (int i = 0; i < kRows / kAtOnce; i += kTogether) {
      float x[kTogether][8] = {}, turns[kTogether][8] = {};
      DD2_UNROLL_ALL
      for (int n = 0; n < kTogether; ++n) {
        if (token < count) read(x[n], source, left);
        if (turned && token < count) read_turns(turns[n], p_.rotary + at, left);
        token += kAtOnce;
        source += step;
        at += kAtOnce * size;
      }
      DD2_UNROLL_ALL
      for (int n = 0; n < kTogether; ++n, target += kAtOnce * kRow) {
        if (turned) turn(x[n], turns[n]);
        store<kRows>(shared_ + target, x[n]);
      }
    }
  }

  // The squared lengths of 16 rows at `rows`: of rows g and g + 8 in the lane with q = g / 2, where
  // its other results are no lengths (g and q as in mma.cuh).
  template <int kPlane>
  DD2_DEVICE static void square(float (&length)[2], SharedAddress rows) {
    float low[4] = {}, high[4] = {};
    DD2_UNROLL_ALL
    for (int k = 0; k < kSteps; ++k) {
      unsigned x[kParts][4];
      DD2_UNROLL_ALL
      for (int a = 0; a < kParts; ++a) load_matrices(x[a], rows + a * kPlane + lane_place(k));
      DD2_UNROLL_ALL
      for (int a = kParts - 1; a >= 0; --a) {
        DD2_UNROLL_ALL
        for (int b = kParts - 1 - a; b >= 0; --b) {
          multiply_add_of<kType>(low, x[a], x[b][0], x[b][2]);
          multiply_add_of<kType>(high, x[a], x[b][1], x[b][3]);
        }
      }
    }
    const bool odd = lane_index() / 4 % 2 != 0;
    length[0] = odd ? low[1] : low[0];
    length[1] = odd ? high[3] : high[2];
  }

 private:
  const BlockCausalAttentionParams& p_;
  unsigned char* shared_;
  const bool vectors_;
  const int token_bytes_, chunk_, row_;

  DD2_DEVICE static bool are_vectors(const BlockCausalAttentionParams& p) {
    const unsigned long long strides =
        p.image_stride | p.token_stride | p.part_stride | p.head_stride | p.size;
    const unsigned long long addresses = reinterpret_cast<unsigned long long>(p.qkv) |
                                         reinterpret_cast<unsigned long long>(p.out) |
                                         reinterpret_cast<unsigned long long>(p.rotary);
    return strides % 8 == 0 && addresses % 16 == 0;
  }

  DD2_DEVICE void read(float (&x)[8], const char* source, int left) const {
    if (vectors_) {
      ChannelGroup<kType, true> group;
      group.load(source, 8);
      DD2_UNROLL_ALL
      for (int i = 0; i < 8; ++i) x[i] = group[i];
    } else {
      ChannelGroup<kType, false> group;
      group.load(source, left);
      DD2_UNROLL_ALL
      for (int i = 0; i < 8; ++i) x[i] = group[i];
    }
  }

  // Cosines and sines of four pairs of channels.
  DD2_DEVICE void read_turns(float (&turns)[8], const float* table, int left) const {
    DD2_UNROLL_ALL
    for (int i = 0; i < 8; i += 4) {
      if (vectors_) {
        const float4 t = *reinterpret_cast<const float4*>(table + i);
        turns[i] = t.x;
        turns[i + 1] = t.y;
        turns[i + 2] = t.z;
        turns[i + 3] = t.w;
      } else {
        DD2_UNROLL_ALL
        for (int n = i; n < i + 4; ++n) turns[n] = n < left ? table[n] : 0.0f;
      }
    }
  }

  // Neighbouring channels (a, b) become (a cos - b sin, b cos + a sin).
  DD2_DEVICE static void turn(float (&x)[8], const float (&turns)[8]) {
    DD2_UNROLL_ALL
    for (int i = 0; i < 8; i += 2) {
      const float a = x[i], b = x[i + 1];
      x[i] = fused_multiply_add(a, turns[i], -b * turns[i + 1]);
      x[i + 1] = fused_multiply_add(b, turns[i], a * turns[i + 1]);
    }
  }

  template <int kRows>
  DD2_DEVICE static void store(unsigned char* target, float (&x)[8]) {
    DD2_UNROLL_ALL
    for (int part = 0; part < kParts; ++part) {
      uint4 words;
      words.x = take_part<kType>(x[0], x[1]);
      words.y = take_part<kType>(x[2], x[3]);
      words.z = take_part<kType>(x[4], x[5]);
      words.w = take_part<kType>(x[6], x[7]);
      *reinterpret_cast<uint4*>(target + part * kRows * kRow) = words;
    }
  }
};

}  // namespace dd2
