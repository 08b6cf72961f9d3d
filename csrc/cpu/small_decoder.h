// The decoder of the small tokenizer on CPUs.
#pragma once

#include "small_transformer.h"

namespace dd2::cpu::DD2_ISA {
namespace {

// out [pixels][outputs] = a 3x3 convolution of the image `in` [grid * grid][inputs / 9].
DD2_INLINE void convolve(const PackedLayer& layer, const float* in, int grid, float* around,
                         float* out, Into into = Into::kSet) {
  const int pixels = grid * grid, channels = layer.inputs / 9;
  const size_t bytes = static_cast<size_t>(channels) * sizeof(float);
  for (int first = 0; first < pixels; first += kPixels) {
    const int count = pixels - first < kPixels ? pixels - first : kPixels;
    float* target = around;
    for (int i = first; i < first + count; ++i) {
      for (int dy = -1; dy <= 1; ++dy) {
        for (int dx = -1; dx <= 1; ++dx, target += channels) {
          const int y = i / grid + dy, x = i % grid + dx;
          if (y < 0 || y >= grid || x < 0 || x >= grid) {
            std::memset(target, 0, bytes);
          } else {
            std::memcpy(target, in + (static_cast<int64_t>(y) * grid + x) * channels, bytes);
          }
        }
      }
    }
    apply(layer, around, layer.inputs, count, out + static_cast<int64_t>(first) * layer.outputs,
          layer.outputs, into);
  }
}

// Pixels [3][2 grid][2 grid] in [0, 1] of one image's embeddings x [n][dim], n = grid^2.
void decode(const float* decoder, int n, int dim, int width, const float* x, float* out,
            Activations& scratch) {
  float *h = scratch.h.get(), *y = scratch.y.get(), *wide = scratch.wide.get();
  int grid = 1;
  while (grid * grid < n) ++grid;
  PackedWeights weights{decoder};
  const float *shift = weights.floats(dim), *scale = weights.floats(dim);
  for (int i = 0; i < n; ++i) {
    for (int c = 0; c < dim; ++c) y[i * dim + c] = x[i * dim + c] * scale[c] + shift[c];
  }
  convolve(weights.layer(9 * dim, width), y, grid, wide, h);
  const int64_t count = static_cast<int64_t>(n) * width;
  for (int64_t i = 0; i < count; i += kLanes) store(y + i, gelu_erf(load(h + i)));
  float* inner = scratch.aside.get();
  convolve(weights.layer(9 * width, width), y, grid, wide, inner);
  map(inner, count, gelu_erf);
  apply(weights.layer(width, width), inner, width, n, h, width, Into::kAdd);
  map(h, count, gelu_erf);
  apply(weights.layer(width, 4 * width), h, width, n, wide, 4 * width);
  map(wide, 4 * count, gelu_erf);
  // The last convolution has one output: its nine taps of every pixel, then their sums.
  const PackedLayer taps = weights.layer(width, 9);
  apply(taps, wide, width, 4 * n, y, kPanel);
  const float bias = *weights.floats(1);
  const int side = 2 * grid;
  for (int row = 0; row < side; ++row) {
    for (int column = 0; column < side; ++column) {
      float sum = bias;
      for (int dy = -1; dy <= 1; ++dy) {
        for (int dx = -1; dx <= 1; ++dx) {
          const int from = row + dy, at = column + dx;
          if (from < 0 || from >= side || at < 0 || at >= side) continue;
          const int cell = (from / 2 * grid + at / 2) * 4 + from % 2 * 2 + at % 2;
          sum += y[cell * kPanel + 3 * (dy + 1) + dx + 1];
        }
      }
      const float gray = sum * 0.5f + 0.5f;
      const float clamped = gray < 0.0f ? 0.0f : gray > 1.0f ? 1.0f : gray;
      const float value = sum - sum == 0.0f ? clamped : quiet_nan();
      for (int colour = 0; colour < 3; ++colour) {
        out[(colour * side + row) * side + column] = value;
      }
    }
  }
}

}  // namespace
}  // namespace dd2::cpu::DD2_ISA
