// Reading the codebook in the device kernels.
#pragma once

#include "dd2/block.cuh"

namespace dd2 {

// Whether every code's groups of kDim values can be read four at a time.
template <int kDim>
DD2_DEVICE bool codes_are_vectors(const float* codebook, long long dim) {
  return dim % kDim == 0 && reinterpret_cast<unsigned long long>(codebook) % 16 == 0;
}

// A code's kDim values from dimension `first` on, zero beyond `dim`.
template <int kDim>
DD2_DEVICE void load_code(const float* code, long long first, long long dim, bool vectors,
                          float (&out)[kDim]) {
  if (vectors) {
    for (int c = 0; c < kDim; c += 4) {
      const float4 v = *reinterpret_cast<const float4*>(code + first + c);
      out[c] = v.x;
      out[c + 1] = v.y;
      out[c + 2] = v.z;
      out[c + 3] = v.w;
    }
    return;
  }
  for (int c = 0; c < kDim; ++c) out[c] = first + c < dim ? code[first + c] : 0.0f;
}

// A codebook [vocabulary, dim].
struct Codebook {
  const float* values;
  int dim;
  bool fours;  // whether codes can be read four values at a time, which 32 bits count

  DD2_DEVICE Codebook(const float* codebook, long long vocabulary, long long width)
      : values(codebook),
        dim(static_cast<int>(width)),
        fours(codes_are_vectors<4>(codebook, width) && vocabulary * width / 4 <= 1ll << 32) {}
};

}  // namespace dd2
