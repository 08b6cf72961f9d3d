#include "dd2/nearest_code.cuh"

#include "launch.h"
#include "run.h"

namespace dd2::cuda {

void launch_nearest_code(const NearestCodeParams& p, void* stream) {
  using Narrow = Values<false>;
  run_all(plan_nearest_code(p, current_device()), [&](const Launch& launch) {
    return run<Values<8>, Narrow, Flags>(DD2_KERNEL(nearest_code_fwd_kernel), launch, p, stream) ||
           run<Values<32>, Flags, Flags>(DD2_KERNEL(nearest_code_fwd_kernel), launch, p, stream);
  });
}

}  // namespace dd2::cuda
