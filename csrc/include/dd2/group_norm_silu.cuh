// Group norm of maps with their channels last on NVIDIA GPUs: every block puts the moments of its
// image's blocks together and applies them to its pixels.
#pragma once

#include "dd2/norm_moments.cuh"

namespace dd2 {

DD2_DEVICE float reciprocal_flushed(float x) {
  float value = 0.0f;
#ifdef __CUDA_ARCH__
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
#endif
  return value;
}

// z / (1 + exp(-z)); two instructions of the special function unit.
DD2_DEVICE float silu_approximate(float z) {
  return z * reciprocal_flushed(1.0f + exp2_flushed(-kLog2E * z));
}

// The grid of norm_moments_kernel, after it; shared: Moments [groups], of which `square` is 1 / sqrt(variance + eps).
template <LogitType kType, bool kSilu, bool kVector>
__global__ void __launch_bounds__(kThreads, 3)
    group_norm_silu_fwd_kernel(const GroupNormSiluParams p) {
  using Group = ChannelGroup<kType, kVector>;
  constexpr int kSize = Group::kSize, kTogether = 64 / (kSize * Group::kBytes);
  DD2_DYNAMIC_SHARED(Moments, of_groups);
  const NormTiling tiling(p.channels);
  const NormBlock block(p);
  const int channels = static_cast<int>(p.channels), groups = static_cast<int>(p.groups);
  const int size = channels / groups, rows = tiling.rows;
  const int pixels = static_cast<int>(p.pixels);
  const float values = static_cast<float>(p.pixels) * static_cast<float>(size);
  DD2_NO_UNROLL
  for (int group = warp_index(); group < groups; group += kWarps) {
    const Moments* first = block.moments(p, group);
    const Moments moments = combine(
        block.blocks, values, [&](int i) { return first[i]; },
        [&](int i) {
          const int left = pixels - i * block.most;  // the last blocks may have few or none
          return static_cast<float>(size) *
                 static_cast<float>(left < block.most ? (left > 0 ? left : 0) : block.most);
        });
    if (lane_index() == 0) {
      of_groups[group] = {moments.mean, 1.0f / sqrtf(moments.square / values + p.eps)};
    }
  }
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x) / tiling.columns;
  if (row >= rows) return;
  const char* source = static_cast<const char*>(p.residual != nullptr ? p.sum : p.x);
  DD2_NO_UNROLL
  for (int column = static_cast<int>(threadIdx.x) - row * tiling.columns; column < tiling.columns;
       column += kThreads) {
    const int channel = column * kNormGroup, left = channels - channel;
    float gain[kSize], shift[kSize];
    DD2_UNROLL_ALL
    for (int i = 0; i < kSize; ++i) {
      gain[i] = shift[i] = 0.0f;
      if (!kVector && i >= left) continue;
      const Moments of = of_groups[(channel + i) / size];
      const bool adds = p.residual == nullptr && p.pre_bias != nullptr;
      const float off = (adds ? p.pre_bias[channel + i] : 0.0f) - of.mean;
      gain[i] = p.weight[channel + i] * of.square;
      shift[i] = fused_multiply_add(off, gain[i], p.bias[channel + i]);
    }
    const auto apply = [&](Group& x) {
      float y[kSize];
      DD2_UNROLL_ALL
      for (int c = 0; c < kSize; ++c) {
        const float z = fused_multiply_add(x[c], gain[c], shift[c]);
        y[c] = kSilu ? silu_approximate(z) : z;
      }
      x.set(y);
    };
    const long long stride = static_cast<long long>(rows) * channels * Group::kBytes;
    const long long pixel = block.image * p.pixels + block.part.first + row;
    long long at = (pixel * channels + channel) * Group::kBytes;
    int i = row;
    DD2_NO_UNROLL
    for (; i + (kTogether - 1) * rows < block.part.count; i += kTogether * rows) {
      Group x[kTogether];
      DD2_UNROLL_ALL
      for (int k = 0; k < kTogether; ++k) x[k].load(source + at + k * stride, left);
      DD2_UNROLL_ALL
      for (int k = 0; k < kTogether; ++k) {
        apply(x[k]);
        x[k].store(static_cast<char*>(p.y) + at + k * stride, left);
      }
      at += kTogether * stride;
    }
    DD2_NO_UNROLL
    for (; i < block.part.count; i += rows, at += stride) {
      Group x;
      x.load(source + at, left);
      apply(x);
      x.store(static_cast<char*>(p.y) + at, left);
    }
    if (rows > 1) break;
  }
}

}  // namespace dd2
