// Arguments of the nearest-code kernels; plain data, shared by every native build.
#pragma once

#include "dd2/host_device.h"

namespace dd2 {

// Computes out = argmin_j |x - c_j|, the first on ties.
struct NearestCodeParams {
  long long* out;         // [rows], -1 where no code is at a finite distance
  const float* x;         // [rows, dim]
  const float* codebook;  // [vocabulary, dim]
  long long rows;
  long long vocabulary;
  long long dim;
};

// Tokens of a block, of launches of few and of many tokens.
DD2_HD constexpr int nearest_block_tokens(bool few) { return few ? 8 : 128; }

}  // namespace dd2
