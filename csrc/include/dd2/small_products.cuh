// Products of a block's activations with packed weights, and what goes with them.
//
// A warp takes 16 rows by a panel of 16 outputs, half of its lanes each other half of the inputs:
// lane 16 half + 4 r + c has rows r, r + 4, r + 8, r + 12 and four outputs from 4 c on. So a warp
// reads each weight once and four of its rows in one go. Where panels are few, warps share the
// inputs of one and leave partial sums, which whoever reads them adds in one order.
#pragma once

#include "dd2/block.cuh"
#include "dd2/small_generator.h"

namespace dd2 {

constexpr int kSmallWarps = kSmallThreads / kWarp;
constexpr int kTileRows = 16;
constexpr int kStepInputs = 8;  // of a warp at a time
constexpr int kMostParts = 3;   // two to the power of it

DD2_DEVICE float4 load4(const float* at) { return *reinterpret_cast<const float4*>(at); }
DD2_DEVICE void store4(float* at, float4 v) { *reinterpret_cast<float4*>(at) = v; }

template <typename Function>
DD2_DEVICE float4 each_of(float4 a, Function f) {
  return make_float4(f(a.x), f(a.y), f(a.z), f(a.w));
}
DD2_DEVICE float4 operator+(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
DD2_DEVICE float4 fused_multiply_add(float4 a, float4 b, float4 c) {
  return make_float4(fused_multiply_add(a.x, b.x, c.x), fused_multiply_add(a.y, b.y, c.y),
                     fused_multiply_add(a.z, b.z, c.z), fused_multiply_add(a.w, b.w, c.w));
}
DD2_DEVICE float4 fused_multiply_add(float a, float4 b, float4 c) {
  return fused_multiply_add(make_float4(a, a, a, a), b, c);
}

// A layer and where its rows of inputs lie; with a grid, a 3x3 convolution of those pixels.
struct SmallTask {
  PackedLayer layer;
  int x, stride, rows, grid;
  int zeros;  // a pixel beyond the image
};

// What a product left: partial sums [parts][rows][stride].
struct SmallSums {
  const float* sums;
  const float* bias;
  int stride, part, parts;

  // Four outputs of a row, with their bias.
  DD2_DEVICE float4 operator()(int row, int output) const {
    float4 sum = load4(bias + output);
    DD2_NO_UNROLL
    for (int i = 0; i < parts; ++i) sum = sum + load4(sums + i * part + row * stride + output);
    return sum;
  }

  DD2_DEVICE float one(int row, int output) const {
    float sum = bias[output];
    DD2_NO_UNROLL
    for (int i = 0; i < parts; ++i) sum += sums[i * part + row * stride + output];
    return sum;
  }
};

// The products of a layer, all threads of the block together. They wait for the inputs, and at the
// end for the sums. kUnrolled: 2 saves copies of registers, but takes more of them.
template <int kUnrolled>
class SmallProduct {
 public:
  DD2_DEVICE SmallProduct(const SmallTask& task, float* memory, int sums, int capacity)
      : task_(task),
        memory_(memory),
        sums_(sums),
        channels_(task.grid > 0 ? task.layer.inputs / 9 : task.layer.inputs),
        tap_steps_((channels_ + kStepInputs - 1) / kStepInputs),
        steps_(task.grid > 0 ? 9 * tap_steps_ : tap_steps_),
        row_tiles_((task.rows + kTileRows - 1) / kTileRows),
        stride_(task.layer.outputs | kPanel),  // two rows lie in different banks
        part_(task.rows * stride_) {
    // Parts until they go evenly into the warps, or are so many that the last round hardly counts.
    int units = row_tiles_ * (task.layer.outputs / kPanel);
    shift_ = 0;
    while (shift_ < kMostParts && units % kSmallWarps != 0 && units < 4 * kSmallWarps &&
           steps_ >> shift_ >= 4 && part_ << (shift_ + 1) <= capacity) {
      ++shift_;
      units *= 2;
    }
    units_ = units;
  }

  DD2_DEVICE SmallSums run() const {
    int number = warp_index();
    Unit unit;
    if (number < units_) start(number, unit);
    __syncthreads();
    DD2_NO_UNROLL
    while (number < units_) {
      multiply(unit);
      store(unit);
      number += kSmallWarps;
      if (number < units_) start(number, unit);
    }
    __syncthreads();
    return {memory_ + sums_, task_.layer.bias, stride_, part_, 1 << shift_};
  }

 private:
  // A part of the inputs of a tile, of which the weights of the next inputs are on their way.
  struct Unit {
    int row, out;  // the lane's first row, and where its sums go in the memory
    int tap, step, left;
    const float* weights;
    float4 ahead[4], sum[4];
  };

  const SmallTask task_;
  float* memory_;
  const int sums_, channels_, tap_steps_, steps_, row_tiles_, stride_, part_;
  int shift_, units_;

  // Whether this lane is of the half that takes the latter inputs of a step.
  DD2_DEVICE static int half() { return lane_index() / 16; }
  DD2_DEVICE static int output() { return lane_index() % 4 * 4; }

  DD2_DEVICE void start(int number, Unit& unit) const {
    const int tile = number >> shift_;
    const int part = number & ((1 << shift_) - 1), panel = tile / row_tiles_;
    unit.row = (tile - panel * row_tiles_) * kTileRows + lane_index() / 4 % 4;
    unit.out = sums_ + part * part_ + panel * kPanel + output();
    unit.step = steps_ * part >> shift_;
    unit.left = (steps_ * (part + 1) >> shift_) - unit.step;
    unit.tap = task_.grid > 0 ? unit.step / tap_steps_ : 0;
    unit.step -= unit.tap * tap_steps_;
    const int input = unit.tap * channels_ + unit.step * kStepInputs + 4 * half();
    unit.weights = task_.layer.panels + (panel * task_.layer.inputs + input) * kPanel + output();
    load_weights(unit);
    for (int i = 0; i < 4; ++i) unit.sum[i] = make_float4(0, 0, 0, 0);
  }

  // Of four inputs, four outputs each. Where channels are no multiple of a step, the last inputs'
  // are others', which meet the zeros that rows end in; such a layer is never an array's last.
  DD2_DEVICE static void load_weights(Unit& unit) {
    for (int k = 0; k < 4; ++k) unit.ahead[k] = load4(unit.weights + k * kPanel);
  }

  // Where a lane's rows of inputs begin, in bytes.
  DD2_DEVICE void find_rows(const Unit& unit, int (&x)[4]) const {
    for (int i = 0; i < 4; ++i) {
      int row = unit.row + 4 * i;
      row = row < task_.rows ? row : task_.rows - 1;
      int place = task_.x + row * task_.stride;
      if (task_.grid > 0) {
        const int above = row / task_.grid, y = above + unit.tap / 3 - 1;
        const int column = row - above * task_.grid + unit.tap % 3 - 1;
        const bool inside = y >= 0 && y < task_.grid && column >= 0 && column < task_.grid;
        place = inside ? task_.x + (y * task_.grid + column) * task_.stride : task_.zeros;
      }
      x[i] = 4 * (place + unit.step * kStepInputs + 4 * half());
    }
  }

  DD2_DEVICE void multiply(Unit& unit) const {
    const char* memory = reinterpret_cast<const char*>(memory_);
    DD2_NO_UNROLL
    while (unit.left > 0) {  // a tap at a time
      int x[4];
      find_rows(unit, x);
      const int end = unit.step + unit.left < tap_steps_ ? unit.step + unit.left : tap_steps_;
      DD2_UNROLL(kUnrolled)
      for (; unit.step < end; ++unit.step) {
        float4 w[4];
        for (int k = 0; k < 4; ++k) w[k] = unit.ahead[k];
        // Without a branch, which would cost copies: at the end the same again.
        if (--unit.left > 0) unit.weights += kStepInputs * kPanel;
        load_weights(unit);
        for (int i = 0; i < 4; ++i) {
          const float4 v = *reinterpret_cast<const float4*>(memory + x[i]);
          x[i] += 4 * kStepInputs;
          unit.sum[i] = fused_multiply_add(v.x, w[0], unit.sum[i]);
          unit.sum[i] = fused_multiply_add(v.y, w[1], unit.sum[i]);
          unit.sum[i] = fused_multiply_add(v.z, w[2], unit.sum[i]);
          unit.sum[i] = fused_multiply_add(v.w, w[3], unit.sum[i]);
        }
      }
      unit.step = 0;
      ++unit.tap;
      if (unit.left > 0 && channels_ % kStepInputs != 0) {
        unit.weights -= (tap_steps_ * kStepInputs - channels_) * kPanel;
        load_weights(unit);
      }
    }
  }

  // Adds the halves: each of two lanes has two rows of the sums.
  DD2_DEVICE void store(const Unit& unit) const {
    const auto other = [](float v) { return __shfl_xor_sync(kAllLanes, v, 16); };
    for (int i = 0; i < 2; ++i) {
      const float4 mine = half() ? unit.sum[i + 2] : unit.sum[i];
      const float4 others = half() ? unit.sum[i] : unit.sum[i + 2];
      const float4 total = mine + each_of(others, other);
      const int row = unit.row + 4 * (2 * half() + i);
      if (row < task_.rows) store4(memory_ + unit.out + row * stride_, total);
    }
  }
};

DD2_DEVICE float sigmoid(float x) { return __fdividef(1.0f, 1.0f + exp2f(-kLog2E * x)); }
DD2_DEVICE float silu(float x) { return x * sigmoid(x); }
DD2_DEVICE float gelu_tanh(float x) {
  return x * sigmoid(1.5957691216f * fused_multiply_add(0.044715f * x * x, x, x));
}
DD2_DEVICE float gelu_erf(float x) {
  const float a = x < 0.0f ? -x : x;
  const float t = __fdividef(1.0f, fused_multiply_add(a, 0.32f, 1.0f));
  const float tail = x * (normal_tail(t) * exp2f(a * a * (-0.5f * kLog2E)));
  return x >= 0.0f ? x - tail : tail;
}

// Calls each(row) for the rows of this warp.
template <typename Each>
DD2_DEVICE void each_row(int rows, Each each) {
  DD2_NO_UNROLL
  for (int row = warp_index(); row < rows; row += kSmallWarps) each(row);
}

// Calls each(i) for the fours of this lane in a row.
template <typename Each>
DD2_DEVICE void each_four(int count, Each each) {
  DD2_NO_UNROLL
  for (int i = 4 * lane_index(); i < count; i += 4 * kWarp) each(i);
}

// LayerNorm of a row without gain and bias, by one warp: each(i, four) takes the results. A lane
// reads the fours that each_four gives it.
template <typename Each>
DD2_DEVICE void normalize_row(const float* x, int width, Each each) {
  float sum = 0.0f, square = 0.0f;
  each_four(width, [&](int i) {
    const float4 v = load4(x + i);
    sum += (v.x + v.y) + (v.z + v.w);
  });
  const float count = static_cast<float>(width);
  const float mean = __fdividef(warp_reduce(sum, Add()), count);
  each_four(width, [&](int i) {
    const float4 v = each_of(load4(x + i), [&](float a) { return (a - mean) * (a - mean); });
    square += (v.x + v.y) + (v.z + v.w);
  });
  const float rate = rsqrtf(__fdividef(warp_reduce(square, Add()), count) + kNormEps);
  each_four(width, [&](int i) {
    each(i, each_of(load4(x + i), [&](float a) { return (a - mean) * rate; }));
  });
}

}  // namespace dd2
