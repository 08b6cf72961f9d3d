// Arguments of the nearest-code kernels; plain data, shared by every native build.
#pragma once

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

}  // namespace dd2
