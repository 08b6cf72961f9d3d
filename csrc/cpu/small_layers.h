// Layers of small networks on CPUs: products of a few rows with packed weights (dd2/small_network.h),
// norms, activations, attention. Rows are tokens or pixels, with their channels side by side.
#pragma once

#include <cmath>
#include <cstring>

#include "dd2/small_network.h"
#include "memory.h"
#include "simd.h"
#include "small_product.h"

namespace dd2::cpu::DD2_ISA {
namespace {

DD2_INLINE Matrix matrix(const PackedLayer& layer) {
  return {layer.panels, kPanel, static_cast<int64_t>(kPanel) * layer.inputs, layer.inputs,
          layer.outputs / kPanel};
}

DD2_INLINE void apply(const PackedLayer& layer, const float* x, int64_t x_stride, int rows,
                      float* out, int64_t out_stride, Into into = Into::kSet) {
  product({x, x_stride}, rows, matrix(layer), layer.bias, out, out_stride, into);
}

DD2_INLINE Vec magnitude(Vec x) { return (Vec)((UintVec)x & 0x7fffffffu); }

// x / (1 + exp(-2 sqrt(2 / pi) (x + 0.044715 x^3))).
DD2_INLINE Vec gelu_tanh(Vec x) {
  const Vec exponent = x * (x * x * -0.10294324f + -2.3022082f);
  return x / (exp2_within(exponent) + 1.0f);
}

// x Phi(x).
DD2_INLINE Vec gelu_erf(Vec x) {
  const Vec a = magnitude(x), t = broadcast(1.0f) / (a * 0.32f + 1.0f);
  const Vec tail = x * (normal_tail(t) * exp2_within(a * a * (-0.5f * kLog2E)));
  return x >= Vec{} ? x - tail : tail;
}

template <typename Function>
DD2_INLINE void map(float* values, int64_t count, const Function& function) {
  for (int64_t i = 0; i < count; i += kLanes) store(values + i, function(load(values + i)));
}

// LayerNorm without gain and bias: each(offset, vector) takes the results, kLanes rows at a time.
template <typename Each>
DD2_INLINE void normalize_rows(const float* x, int rows, int width, const Each& each) {
  for (int first = 0; first < rows; first += kLanes) {
    const int count = rows - first < kLanes ? rows - first : kLanes;
    const float* start = x + static_cast<int64_t>(first) * width;
    const auto row = [&](int r) { return start + static_cast<int64_t>(r < count ? r : 0) * width; };
    const Vec mean = lane_sums([&](int r) __attribute__((always_inline)) {
                       const float* values = row(r);
                       Vec sum{};
                       for (int i = 0; i < width; i += kLanes) sum += load(values + i);
                       return sum;
                     }) / static_cast<float>(width);
    const Vec square = lane_sums([&](int r) __attribute__((always_inline)) {
      const float* values = row(r);
      const Vec centre = broadcast(mean[r]);
      Vec sum{};
      for (int i = 0; i < width; i += kLanes) {
        const Vec centred = load(values + i) - centre;
        sum += centred * centred;
      }
      return sum;
    });
    const Vec variance = square / static_cast<float>(width) + kNormEps;
    Vec rate;
    for (int r = 0; r < kLanes; ++r) rate[r] = __builtin_sqrtf(variance[r]);
    rate = 1.0f / rate;
    for (int r = 0; r < count; ++r) {
      const float* values = row(r);
      const Vec centre = broadcast(mean[r]), factor = broadcast(rate[r]);
      for (int i = 0; i < width; i += kLanes) {
        each(first + r, i, (load(values + i) - centre) * factor);
      }
    }
  }
}

DD2_NOINLINE void normalize(const float* x, int rows, int width, float* out) {
  normalize_rows(x, rows, width, [&](int r, int i, Vec v) {
    store(out + static_cast<int64_t>(r) * width + i, v);
  });
}

// The softmax of every column of scores [keys][16]; column i is of query `first` + i, which sees
// keys up to its own.
DD2_INLINE void causal_softmax(float* scores, int keys, int first) {
  for (int v = 0; v < kPanel; v += kLanes) {
    const IntVec query = lane_numbers() + (first + v);
    Vec largest = load(scores + v);
    for (int j = 1; j < keys; ++j) {
      const Vec score = load(scores + j * kPanel + v);
      largest = query >= j ? max(score, largest) : largest;
    }
    Vec total{};
    for (int j = 0; j < keys; ++j) {
      const Vec score = load(scores + j * kPanel + v);
      const Vec e = exp2_nonpositive((query >= j ? score - largest : broadcast(-1e4f)) * kLog2E);
      total += e;
      store(scores + j * kPanel + v, e);
    }
    const Vec rate = 1.0f / total;
    for (int j = 0; j < keys; ++j) {
      store(scores + j * kPanel + v, load(scores + j * kPanel + v) * rate);
    }
  }
}

// softmax over the first `count` of `padded` scores, in place; the others become 0.
DD2_INLINE void softmax(float* scores, int count, int padded) {
  for (int j = count; j < padded; ++j) scores[j] = negative_infinity();
  Vec largest = load(scores);
  for (int j = kLanes; j < padded; j += kLanes) largest = max(load(scores + j), largest);
  const Vec top = broadcast(reduce_max(largest));
  Vec total{};
  for (int j = 0; j < padded; j += kLanes) {
    const Vec e = exp2_nonpositive((load(scores + j) - top) * kLog2E);
    total += e;
    store(scores + j, e);
  }
  const Vec rate = broadcast(1.0f / reduce_add(total));
  for (int j = 0; j < padded; j += kLanes) store(scores + j, load(scores + j) * rate);
}

// h += MLP(LN(h)); `y [rows][width]` and `wide [rows][4 width]` are scratch.
DD2_NOINLINE void mlp(const PackedBlock& block, float* h, int rows, int width, float* y, float* wide) {
  normalize(h, rows, width, y);
  apply(block.expand, y, width, rows, wide, 4 * width);
  map(wide, static_cast<int64_t>(rows) * 4 * width, gelu_tanh);
  apply(block.contract, wide, 4 * width, rows, h, width, Into::kAdd);
}

}  // namespace
}  // namespace dd2::cpu::DD2_ISA
