// The noise of images on NVIDIA GPUs: a thread draws the four words of a counter, two pairs of
// normals.
#pragma once

#include "dd2/image_noise.cuh"
#include "dd2/image_normal.h"

namespace dd2 {

// grid (ceil(images * ceil(count / 4) / kThreads)).
__global__ void __launch_bounds__(kThreads) image_normal_fwd_kernel(const ImageNormalParams p) {
  const long long counters = (p.count + 3) / 4;
  const long long i = static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x;
  const long long image = i / counters, counter = i - image * counters;
  if (image >= p.images) return;
  float normals[4];
  counter_normals(p.seeds != nullptr ? p.seeds[image] : p.seed, p.indices[image], counter, p.stream,
                  normals);
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
