// Arguments of the attention kernel; plain data, shared by every native build.
#pragma once

#include "dd2/teacher_rows.h"

namespace dd2 {

constexpr int kMostBlocks = 24;  // of tokens

struct BlockEnds {
  int at[kMostBlocks];
};

// Computes out_i = sum_j p_ij v_j, p_ij ∝ exp(scale q_i·k_j) over the keys j that token i sees.
struct BlockCausalAttentionParams {
  void* out;            // [images, tokens, heads, size] of `type`
  const void* qkv;      // [images, tokens, 3, heads, size] likewise, with strides in values
  const float* gain;    // [heads], of unit queries and keys, or null
  const float* rotary;  // [tokens, size / 2, 2], cosines and sines, or null
  long long image_stride;
  long long token_stride;
  long long part_stride;  // from queries to keys, and to values
  long long head_stride;  // channels are neighbours
  long long images;
  long long tokens;
  long long heads;
  long long size;
  float scale;
  int strict;  // tokens see lower blocks and themselves, not their own block
  LogitType type;
  int blocks;  // 0: each token is one
  BlockEnds ends;
};

// How a block of four warps goes over queries and keys: two or four warps stand side by side over
// the queries, and two share the keys of each tile.
constexpr int kAttentionThreads = 128;
constexpr int kTileKeys = 64;
constexpr int kChunkKeys = 32;  // of a warp at a time

// A float is the sum of three bfloat16s.
DD2_HD constexpr int attention_parts(LogitType type) {
  return type == LogitType::kFloat32 ? 3 : 1;
}

// Queries of a warp, of heads padded to `size` channels, which their sums in registers limit.
DD2_HD constexpr int attention_rows(int size) { return size <= 64 ? 32 : 16; }

// Tiles of keys and values in shared memory: the next is on its way, where nothing has to be split.
DD2_HD constexpr int attention_stages(LogitType type) {
  return type == LogitType::kFloat32 ? 1 : 2;
}

// Bytes of keys, or of values, in a tile.
DD2_HD constexpr int attention_tile(LogitType type, int size) {
  return attention_parts(type) * kTileKeys * size * 2;
}

// Bytes of shared memory with `abreast` warps over the queries.
DD2_HD constexpr int attention_shared(LogitType type, int size, int abreast) {
  const int queries = attention_parts(type) * abreast * attention_rows(size) * size * 2;
  const int words = kTileKeys + abreast * attention_rows(size);  // factors of keys, queries' limits
  return queries + 2 * attention_stages(type) * attention_tile(type, size) + 4 * words;
}

}  // namespace dd2
