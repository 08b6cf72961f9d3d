// Arguments of the conditional-score kernels; plain data, shared by every native build.
#pragma once

#include "dd2/csd_loss.h"
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

}  // namespace dd2
