// The noise of images on NVIDIA GPUs: a thread draws the four words of a counter, two pairs of
// normals.
#pragma once

#include "dd2/block.cuh"
#include "dd2/box_muller.cuh"
#include "dd2/image_normal.h"
#include "dd2/philox.cuh"

namespace dd2 {

DD2_DEVICE void normal_pair(unsigned radius_word, unsigned angle_word, float* pair) {
  const double radius = __builtin_sqrt(
      squared_radius<double>(static_cast<unsigned long long>(radius_word)));
  double cosine, sine;
  direction(static_cast<unsigned long long>(angle_word), cosine, sine);
  pair[0] = static_cast<float>(radius * cosine);
  pair[1] = static_cast<float>(radius * sine);
}

// grid (ceil(images * ceil(count / 4) / kThreads)).
__global__ void __launch_bounds__(kThreads) image_normal_fwd_kernel(const ImageNormalParams p) {
  const long long counters = (p.count + 3) / 4;
  const long long i = static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x;
  const long long image = i / counters, counter = i - image * counters;
  if (image >= p.images) return;
  const auto key = static_cast<unsigned long long>(p.seeds != nullptr ? p.seeds[image] : p.seed);
  const auto index = static_cast<unsigned long long>(p.indices[image]);
  const PhiloxWords r = philox({{static_cast<unsigned>(counter), static_cast<unsigned>(index),
                                 static_cast<unsigned>(index >> 32), p.stream}},
                               static_cast<unsigned>(key), static_cast<unsigned>(key >> 32));
  float normals[4];
  normal_pair(r.word[0], r.word[1], normals);
  normal_pair(r.word[2], r.word[3], normals + 2);
  float* out = p.out + image * p.count + 4 * counter;
  if (p.count % 4 == 0) {  // torch aligns `out` itself
    *reinterpret_cast<float4*>(out) = make_float4(normals[0], normals[1], normals[2], normals[3]);
    return;
  }
  for (int k = 0; k < 4; ++k) {
    if (4 * counter + k < p.count) out[k] = normals[k];
  }
}

}  // namespace dd2
