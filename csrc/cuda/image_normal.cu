#include "dd2/image_normal.cuh"

#include "launch.h"
#include "run.h"

namespace dd2::cuda {

void launch_image_normal(const ImageNormalParams& p, void* stream) {
  run_all(plan_image_normal(p, current_device()), [&](const Launch& launch) {
    launch_kernel(image_normal_fwd_kernel, launch, p, stream);
    return true;
  });
}

}  // namespace dd2::cuda
