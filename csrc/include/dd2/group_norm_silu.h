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

// How a block of a GPU's kernels walks over its pixels: a thread takes kNormGroup channels of every
// `rows`th pixel, or of all where one pixel has more of them than the block has threads.
constexpr int kNormGroup = 8;

struct NormTiling {
  int columns;  // of kNormGroup channels
  int rows;

  DD2_HD explicit NormTiling(long long channels)
      : columns(static_cast<int>(ceil_divide(channels, kNormGroup))),
        rows(columns < kThreads ? kThreads / columns : 1) {}
};

// The pixels of one block of an image, the first of them and how many.
struct NormPart {
  long long first;
  int count;

  // `most`: pixels of every block but the last ones.
  DD2_HD NormPart(long long pixels, int most, int block)
      : first(static_cast<long long>(block) * most), count(most) {
    if (first > pixels) first = pixels;
    if (count > pixels - first) count = static_cast<int>(pixels - first);
  }
};

}  // namespace dd2
