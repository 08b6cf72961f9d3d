// Arguments of the small networks' kernels, and how their weights lie in memory; plain data, shared
// by every native build.
//
// Weights are one array of floats, parts after one another, each a multiple of 16 floats. A layer
// y = x W + b is its bias, then W in panels of 16 columns, [outputs / 16][inputs][16], with zeros in
// columns that are only there to fill a panel. dd2_fast/ops/small_network.py writes this order.
#pragma once

#include "dd2/posterior.cuh"

namespace dd2 {

constexpr int kPanel = 16;
constexpr float kNormEps = 1e-5f;  // of LayerNorms
constexpr unsigned kNoiseStream = 0;   // NOISE_STREAM in dd2_fast/sampling/noise.py

// A causal transformer over code vectors: classes, positions, input, layers.
struct SmallTransformer {
  const float* weights;
  int classes;  // with the null class
  int tokens;
  int dim;  // of a code vector
  int width;
  int layers;
  int heads;
};

DD2_HD int up_to_panel(int count) { return (count + kPanel - 1) / kPanel * kPanel; }

struct PackedLayer {
  const float* bias;    // [outputs]
  const float* panels;  // [outputs / 16][inputs][16]
  int inputs;
  int outputs;  // a multiple of 16
};

// Goes through the weights in their order.
struct PackedWeights {
  const float* at;

  DD2_HD const float* floats(long long count) {
    const float* start = at;
    at += (count + kPanel - 1) / kPanel * kPanel;
    return start;
  }

  DD2_HD PackedLayer layer(int inputs, int outputs) {
    const int padded = up_to_panel(outputs);
    const float* bias = floats(padded);
    return {bias, floats(static_cast<long long>(inputs) * padded), inputs, padded};
  }
};

// A block's layers; the norms' gains and biases are in the layers after them, 1 / sqrt(head size)
// is in the queries'.
struct PackedBlock {
  PackedLayer qkv, projection, expand, contract;

  DD2_HD PackedBlock(PackedWeights& weights, int width)
      : qkv(weights.layer(width, 3 * width)),
        projection(weights.layer(width, width)),
        expand(weights.layer(width, 4 * width)),
        contract(weights.layer(4 * width, width)) {}
};

// Phi(-a) exp(a^2 / 2) of t = 1 / (1 + 0.32 a), to 2e-9 of x Phi(x). T is float, or a vector.
template <typename T>
DD2_HD T normal_tail(T t) {
  T p = t * 0.04586691f - 0.24134197f;
  p = p * t + 0.4094871f;
  p = p * t - 0.16757719f;
  p = p * t + 0.21925026f;
  p = p * t + 0.10448582f;
  p = p * t + 0.12982908f;
  return p * t;
}

}  // namespace dd2
