#include "dd2/image_normal.cuh"

#include "check.h"
#include "launch.h"

namespace dd2::cuda {

void launch_image_normal(const ImageNormalParams& p, void* stream) {
  const long long threads = p.images * ((p.count + 3) / 4);
  if (threads <= 0) return;
  const dim3 grid(static_cast<unsigned>((threads + kThreads - 1) / kThreads));
  launch(image_normal_fwd_kernel, grid, kThreads, 0, static_cast<cudaStream_t>(stream), p,
         "image_normal");
}

}  // namespace dd2::cuda
