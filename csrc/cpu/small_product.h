// Products of a few rows with a packed matrix of a small network (dd2/small_network.h).
#pragma once

#include "dd2/small_network.h"
#include "simd.h"

namespace dd2::cpu::DD2_ISA {

// A matrix [inputs][16 * panels], row_stride floats between the rows of a panel.
struct Matrix {
  const float* panels;
  int64_t row_stride, panel_stride;
  int inputs, count;  // of panels
};

enum class Into { kSet, kAdd };

// Rows of inputs: of row r, number k is at[r * stride + k * step].
struct Rows {
  const float* at;
  int64_t stride, step = 1;

  DD2_INLINE Rows from(int row) const { return {at + row * stride, stride, step}; }
};

// out [rows][16 * panels] = bias + x W, or += with Into::kAdd. A few panels at a time, so that their
// weights come from memory once, whatever the rows.
void product(const Rows& x, int rows, const Matrix& m, const float* bias, float* out,
             int64_t out_stride, Into into = Into::kSet);

}  // namespace dd2::cpu::DD2_ISA
