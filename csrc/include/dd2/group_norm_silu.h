// Arguments of the group norm kernels; plain data, shared by every native build.
#pragma once

#include "dd2/teacher_rows.h"

namespace dd2 {

// Computes sum = x + pre_bias + residual, where there is a residual, and
// y = GN(sum) weight + bias, or its SiLU. All maps have their channels last.
struct GroupNormSiluParams {
  void* y;               // [images, pixels, channels] of `type`
  void* sum;             // likewise; null without a residual
  const void* x;         // likewise
  const void* residual;  // likewise, or null
  const float* weight;   // [channels]
  const float* bias;     // [channels]
  const float* pre_bias;  // [channels], or null
  void* workspace;        // what the plan asks for, on a GPU
  long long images;
  long long pixels;
  long long channels;
  long long groups;  // a divisor of channels
  float eps;
  int silu;  // 0 or 1
  LogitType type;
};

}  // namespace dd2
