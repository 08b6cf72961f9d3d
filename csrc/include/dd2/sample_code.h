// Arguments of the code-sampling kernels; plain data, shared by every native build.
#pragma once

#include "dd2/teacher_rows.h"

namespace dd2 {

constexpr unsigned kSampleStream = 2;  // last counter word; 0 and 1 are the sampler's noise

// Draws out = one code for every row.
struct SampleCodeParams {
  TeacherRows teacher;
  long long* out;          // [rows], -1 for an invalid row
  const long long* seed;   // [rows], or [] with a stride of 0
  const long long* index;  // [rows] counter of each row, or null for 0, 1, ...
  long long seed_stride;
  float inverse_temperature;
};

}  // namespace dd2
