// Arguments of the conditional-score kernels; plain data, shared by every native build.
#pragma once

#include "dd2/csd_loss.h"
#include "dd2/host_device.h"
#include "dd2/teacher_rows.h"

namespace dd2 {

// Computes x0 and, where `direction` is given, J u; of these and of the loss what is not null.
struct ConditionalScoreParams {
  TeacherRows teacher;
  float* out;              // x0 [rows, draws, dim], or null
  float* jacobian;         // J u [rows, draws, dim], or null
  const float* x_t;        // [rows, draws, dim]
  const float* t;          // [rows, draws]
  const float* direction;  // u [rows, draws, dim], or null
  const float* codebook;   // [vocabulary, dim]
  long long draws;
  long long dim;
  CsdLossParams csd;          // its direction is F - x, or null
  void* workspace = nullptr;  // CUDA: bytes for tensor cores, aligned to 128; null: one block a row
};

// A code's dimensions, padded to a multiple of those that a block or thread takes at a time.
template <int kDim, typename Params>
DD2_HD long long padded_dim(const Params& p) {
  return (p.dim + kDim - 1) / kDim * kDim;
}

// Floats of dynamic shared memory that hold the vectors of a block's token: four, padded.
template <int kDim, typename Params>
DD2_HD long long vector_floats(const Params& p) {
  return 4 * padded_dim<kDim>(p);
}

}  // namespace dd2
