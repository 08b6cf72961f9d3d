// What the kernels of the tensor-core way hand on, and the sizes that they agree on with their
// launcher.
#pragma once

#include "dd2/conditional_score.h"
#include "dd2/host_device.h"

namespace dd2 {

constexpr int kTileCodes = 64;  // of a tile of the codebook
constexpr int kDenseWarps = 4;
constexpr int kDenseThreads = kDenseWarps * kWarp;
constexpr int kWarpTokens = 16;
constexpr int kDenseTokens = kDenseWarps * kWarpTokens;

// The dimensions that a code is padded to.
DD2_HD constexpr int dense_dim(long long dim) { return dim <= 16 ? 16 : dim <= 32 ? 32 : 64; }

// Bytes of a tile: two halves a value, half a squared length a code.
DD2_HD constexpr int dense_tile_bytes(int width) { return kTileCodes * 4 * (width + 1); }

// Floats between the totals of two tokens: four tokens' neighbours fill the banks.
DD2_HD constexpr int dense_stride(int width) { return width + 8; }

// Bytes of dynamic shared memory that a block needs: two tiles and the totals.
DD2_HD constexpr int dense_shared_bytes(int width, bool jacobian) {
  return 2 * dense_tile_bytes(width) + (jacobian ? 8 : 4) * kDenseTokens * dense_stride(width);
}

// What row_filter_kernel finds in a row; a threshold of NaN keeps no code: the row is invalid.
struct KeptRange {
  float threshold;
  float largest;  // logit
};

// In global memory.
struct DenseWorkspace {
  static constexpr long long kAlignment = 128;

  static constexpr long long kCentreBytes = 256;

  int* exponent;         // the codebook is stored times 2^exponent
  float* centre;         // [dense_dim], zeros behind: it is stored less this
  unsigned char* tiles;  // CodeTile
  KeptRange* kept;       // [rows], where the rows are filtered

  DD2_HD explicit DenseWorkspace(const ConditionalScoreParams& p)
      : exponent(static_cast<int*>(p.workspace)),
        centre(reinterpret_cast<float*>(static_cast<unsigned char*>(p.workspace) + kAlignment)),
        tiles(static_cast<unsigned char*>(p.workspace) + kAlignment + kCentreBytes),
        kept(reinterpret_cast<KeptRange*>(tiles + tile_count(p) * tile_bytes(p))) {}

  DD2_HD static long long tile_count(const ConditionalScoreParams& p) {
    return ceil_divide(p.teacher.vocabulary, kTileCodes);
  }
  DD2_HD static long long tile_bytes(const ConditionalScoreParams& p) {
    return dense_tile_bytes(dense_dim(p.dim));
  }
  DD2_HD static long long bytes(const ConditionalScoreParams& p) {
    const long long filtered = p.teacher.filtered() ? p.teacher.rows : 0;
    return kAlignment + kCentreBytes + tile_count(p) * tile_bytes(p) +
           filtered * static_cast<long long>(sizeof(KeptRange));
  }
};

}  // namespace dd2
