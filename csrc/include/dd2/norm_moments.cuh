// The statistics of a group norm on NVIDIA GPUs: every block of an image's pixels gives each group's
// mean and the squares about it. Nothing is added in an order that changes from run to run.
#pragma once

#include "dd2/channel_group.cuh"
#include "dd2/group_norm_silu.h"
#include "dd2/posterior.cuh"

namespace dd2 {

// A mean and the sum of squares about it.
struct Moments {
  float mean;
  float square;
};

// The block's image and pixels; gridDim.x is images times blocks of each.
struct NormBlock {
  int blocks;  // of an image
  int image;
  int index;  // of the image's
  int most;   // pixels of a block
  NormPart part;

  DD2_DEVICE explicit NormBlock(const GroupNormSiluParams& p)
      : blocks(static_cast<int>(gridDim.x / static_cast<unsigned>(p.images))),
        image(static_cast<int>(blockIdx.x) / blocks),
        index(static_cast<int>(blockIdx.x) - image * blocks),
        most((static_cast<int>(p.pixels) - 1) / blocks + 1),
        part(p.pixels, most, index) {}

  // Of a group of the image, a block after the other.
  DD2_DEVICE Moments* moments(const GroupNormSiluParams& p, int group) const {
    return static_cast<Moments*>(p.workspace) + (image * p.groups + group) * blocks;
  }
};

// The moments of several means with squares about them, of(i) for i = 0, ..., count - 1, each of
// weight(i) values that sum to `total`: a warp's lanes share them, and all have the result.
template <typename Of, typename Weight>
DD2_DEVICE Moments combine(int count, float total, Of of, Weight weight) {
  float sum = 0.0f, square = 0.0f;
  for (int i = lane_index(); i < count; i += kWarp) sum += weight(i) * of(i).mean;
  const float mean = total > 0.0f ? warp_reduce(sum, Add()) / total : 0.0f;
  for (int i = lane_index(); i < count; i += kWarp) {
    const Moments own = of(i);
    const float off = own.mean - mean;
    square += own.square + weight(i) * off * off;
  }
  return {mean, warp_reduce(square, Add())};
}

// A thread's channels over the pixels that it takes.
template <LogitType kType, bool kResidual, bool kVector>
class ChannelMoments {
 public:
  using Group = ChannelGroup<kType, kVector>;
  static constexpr int kSize = Group::kSize;
  // Pixels at a time: 128 bytes on their way a thread.
  static constexpr int kTogether = 128 / (kSize * Group::kBytes) / (kResidual ? 2 : 1);

  float mean[kSize] = {};
  float square[kSize] = {};

  DD2_DEVICE ChannelMoments(const GroupNormSiluParams& p, int channel)
      : left_(static_cast<int>(p.channels) - channel) {
    DD2_UNROLL_ALL
    for (int i = 0; i < kSize; ++i) {
      added_[i] = p.pre_bias != nullptr && i < left_ ? p.pre_bias[channel + i] : 0.0f;
    }
  }

  // Takes `count` pixels `stride` values apart, from value `at` on.
  DD2_DEVICE void take(const GroupNormSiluParams& p, long long at, int count, long long stride) {
    float seen = 0.0f;
    int i = 0;
    DD2_NO_UNROLL
    for (; i + kTogether <= count; i += kTogether, at += kTogether * stride) {
      take<kTogether>(p, at, stride, seen);
    }
    DD2_NO_UNROLL
    for (; i < count; ++i, at += stride) take<1>(p, at, stride, seen);
    if constexpr (!kResidual) {  // else it is in what was taken
      DD2_UNROLL_ALL
      for (int c = 0; c < kSize; ++c) mean[c] += added_[c];
    }
  }

 private:
  float added_[kSize];
  int left_;  // channels from the first on

  DD2_DEVICE static const char* from(const void* start, long long at) {
    return static_cast<const char*>(start) + at * Group::kBytes;
  }

  template <int kCount>
  DD2_DEVICE void take(const GroupNormSiluParams& p, long long at, long long stride, float& seen) {
    Group x[kCount];
    DD2_UNROLL_ALL
    for (int i = 0; i < kCount; ++i) x[i].load(from(p.x, at + i * stride), left_);
    if constexpr (kResidual) {
      Group residual[kCount];
      DD2_UNROLL_ALL
      for (int i = 0; i < kCount; ++i) residual[i].load(from(p.residual, at + i * stride), left_);
      DD2_UNROLL_ALL
      for (int i = 0; i < kCount; ++i) {
        float sum[kSize];
        DD2_UNROLL_ALL
        for (int c = 0; c < kSize; ++c) sum[c] = (x[i][c] + added_[c]) + residual[i][c];
        x[i].set(sum);
        x[i].store(const_cast<char*>(from(p.sum, at + i * stride)), left_);
      }
    }
    const float before = seen;
    seen += kCount;
    const float share = kCount * __fdividef(1.0f, seen), both = before * share;
    DD2_UNROLL_ALL
    for (int c = 0; c < kSize; ++c) {
      float own = x[0][c], about = 0.0f;
      if constexpr (kCount > 1) {
        DD2_UNROLL_ALL
        for (int i = 1; i < kCount; ++i) own += x[i][c];
        own *= 1.0f / kCount;
        DD2_UNROLL_ALL
        for (int i = 0; i < kCount; ++i) {
          const float off = x[i][c] - own;
          about = fused_multiply_add(off, off, about);
        }
      }
      const float off = own - mean[c];
      mean[c] = fused_multiply_add(off, share, mean[c]);
      square[c] += fused_multiply_add(off * off, both, about);
    }
  }
};

// grid (images * blocks of each), shared: Moments [rows, channels].
template <LogitType kType, bool kResidual, bool kVector>
__global__ void __launch_bounds__(kThreads, 2)
    norm_moments_kernel(const GroupNormSiluParams p) {
  DD2_DYNAMIC_SHARED(Moments, of_channels);
  const NormTiling tiling(p.channels);
  const NormBlock block(p);
  const int channels = static_cast<int>(p.channels), rows = tiling.rows;
  const int each = block.part.count / rows, more = block.part.count - each * rows;
  const auto count_of = [&](int row) { return each + (row < more); };
  const int row = static_cast<int>(threadIdx.x) / tiling.columns;
  if (row < rows) {
    DD2_NO_UNROLL
    for (int column = static_cast<int>(threadIdx.x) - row * tiling.columns; column < tiling.columns;
         column += kThreads) {
      const int channel = column * kNormGroup;
      const long long pixel = block.image * p.pixels + (block.part.first + row);
      ChannelMoments<kType, kResidual, kVector> moments(p, channel);
      moments.take(p, pixel * channels + channel, count_of(row),
                   static_cast<long long>(rows) * channels);
      DD2_UNROLL_ALL
      for (int i = 0; i < kNormGroup; ++i) {
        if (kVector || channel + i < channels) {
          of_channels[row * channels + channel + i] = {moments.mean[i], moments.square[i]};
        }
      }
      if (rows > 1) break;
    }
  }
  __syncthreads();
  const float count = static_cast<float>(block.part.count);
  DD2_NO_UNROLL
  for (int c = static_cast<int>(threadIdx.x); c < channels; c += kThreads) {
    Moments* own = of_channels + c;
    float sum = 0.0f, square = 0.0f;
    DD2_NO_UNROLL
    for (int r = 0; r < rows; ++r) sum += static_cast<float>(count_of(r)) * own[r * channels].mean;
    const float mean = count > 0.0f ? __fdividef(sum, count) : 0.0f;
    DD2_NO_UNROLL
    for (int r = 0; r < rows; ++r) {
      const float off = own[r * channels].mean - mean;
      square += own[r * channels].square + static_cast<float>(count_of(r)) * off * off;
    }
    *own = {mean, square};
  }
  __syncthreads();
  const int size = channels / static_cast<int>(p.groups);
  DD2_NO_UNROLL
  for (int group = warp_index(); group < p.groups; group += kWarps) {
    const Moments* first = of_channels + group * size;
    const Moments moments =
        combine(size, count * static_cast<float>(size), [&](int i) { return first[i]; },
                [&](int) { return count; });
    if (lane_index() == 0) block.moments(p, group)[block.index] = moments;
  }
}

}  // namespace dd2
