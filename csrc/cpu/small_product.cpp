// Products of small networks on CPUs, in tiles whose sums stay in registers.

#include "small_product.h"

namespace dd2::cpu::DD2_ISA {
namespace {

constexpr int kPanelVectors = kPanel / kLanes;
constexpr int kSums = kLanes == 16 ? 24 : 12;  // registers that hold sums
constexpr int kMostRows = kLanes == 16 ? 8 : kLanes == 8 ? 6 : 3;

constexpr int kAhead = 512;  // weights to fetch ahead: a small batch finds them outside the L2

// Panels of a tile: enough sums to hide the latency of an addition, none in memory.
constexpr int panels_of(int rows) {
  const int fit = kSums / (rows * kPanelVectors);
  return fit < 1 ? 1 : fit > 4 ? 4 : fit;
}

// out = bias + x W or out += bias + x W for kRows rows and kPanels panels; `bias` may be null.
template <int kRows, int kPanels>
DD2_NOINLINE void tile(const Rows x, const float* w, const Matrix& matrix,
                       const float* bias, float* out, int64_t out_stride, Into into) {
  constexpr int kVectors = kPanels * kPanelVectors;
  Vec sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    const Vec start = bias != nullptr ? load(bias + v * kLanes) : Vec{};
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) sum[r][v] = start;
  }
  const int64_t row_stride = matrix.row_stride, panel_stride = matrix.panel_stride;
  const float* at = x.at;
  for (int k = 0; k < matrix.inputs; ++k) {
    Vec weight[kVectors];
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) {
      __builtin_prefetch(w + k * row_stride + p * panel_stride + kAhead);
    }
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      weight[v] = load(w + k * row_stride + v / kPanelVectors * panel_stride +
                       v % kPanelVectors * kLanes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec value = broadcast(at[r * x.stride]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sum[r][v] += value * weight[v];
    }
    at += x.step;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      float* target = out + r * out_stride + v * kLanes;
      store(target, into == Into::kAdd ? load(target) + sum[r][v] : sum[r][v]);
    }
  }
}

// The panels from `first` on that are left when tiles of kPanels are done.
template <int kRows, int kPanels>
DD2_INLINE void row_tile(const Rows& x, const Matrix& m, const float* bias, float* out,
                         int64_t out_stride, Into into, int first, int last) {
  for (; first + kPanels <= last; first += kPanels) {
    tile<kRows, kPanels>(x, m.panels + first * m.panel_stride, m,
                         bias != nullptr ? bias + first * kPanel : nullptr, out + first * kPanel,
                         out_stride, into);
  }
  if constexpr (kPanels > 1) {
    row_tile<kRows, kPanels - 1>(x, m, bias, out, out_stride, into, first, last);
  }
}

template <int kRows>
DD2_INLINE void few_rows(int rows, const Rows& x, const Matrix& m, const float* bias, float* out,
                         int64_t out_stride, Into into, int first, int last) {
  if (rows == kRows) {
    row_tile<kRows, panels_of(kRows)>(x, m, bias, out, out_stride, into, first, last);
  } else if constexpr (kRows > 1) {
    few_rows<kRows - 1>(rows, x, m, bias, out, out_stride, into, first, last);
  }
}

}  // namespace

void product(const Rows& x, int rows, const Matrix& m, const float* bias, float* out,
             int64_t out_stride, Into into) {
  constexpr int kAtATime = panels_of(kMostRows) > 1 ? panels_of(kMostRows) : 4;
  for (int first = 0; first < m.count; first += kAtATime) {
    const int last = first + kAtATime < m.count ? first + kAtATime : m.count;
    int row = 0;
    for (; row + kMostRows <= rows; row += kMostRows) {
      row_tile<kMostRows, panels_of(kMostRows)>(x.from(row), m, bias, out + row * out_stride,
                                                out_stride, into, first, last);
    }
    if (row < rows) {
      few_rows<kMostRows - 1>(rows - row, x.from(row), m, bias, out + row * out_stride, out_stride,
                              into, first, last);
    }
  }
}

}  // namespace dd2::cpu::DD2_ISA
