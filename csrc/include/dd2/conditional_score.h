// Arguments of the conditional-score kernels; plain data, shared by every native build.
#pragma once

#include "dd2/teacher_rows.h"

namespace dd2 {

// Computes out = x0 [rows, draws, dim], or out = J u where `direction` is given.
struct ConditionalScoreParams {
  TeacherRows teacher;
  float* out;              // [rows, draws, dim]
  const float* x_t;        // [rows, draws, dim]
  const float* t;          // [rows, draws]
  const float* direction;  // u [rows, draws, dim], or null for x0
  const float* codebook;   // [vocabulary, dim]
  long long draws;
  long long dim;
};

}  // namespace dd2
