#include "dd2/small_generator.cuh"

#include "launch.h"
#include "run.h"

namespace dd2::cuda {

void launch_small_generator(const SmallGeneratorParams& p, void* stream) {
  run_all(plan_small_generator(p, current_device()), [&](const Launch& launch) {
    return run<Flags>(DD2_KERNEL(small_generator_fwd_kernel), launch, p, stream);
  });
}

}  // namespace dd2::cuda
