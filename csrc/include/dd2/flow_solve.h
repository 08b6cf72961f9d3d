// Arguments of the flow-solving kernels; plain data, shared by every native build.
#pragma once

#include "dd2/teacher_rows.h"

namespace dd2 {

// Integrates dx/dt = (x - x0(x, t)) / t from t = 1 to 0 and finds the kept code nearest to the end.
struct FlowSolveParams {
  TeacherRows teacher;
  long long* out;         // [rows, draws], -1 for an invalid row or token
  const float* noise;     // [rows, draws, dim]
  const float* codebook;  // [vocabulary, dim]
  long long draws;
  long long dim;
  long long steps;
  bool heun;  // else Euler
};

}  // namespace dd2
