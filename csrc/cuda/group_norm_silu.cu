#include "dd2/group_norm_silu.cuh"

#include "launch.h"
#include "run.h"

namespace dd2::cuda {

void launch_group_norm_silu(const GroupNormSiluParams& p, void* stream) {
  run_all(plan_group_norm_silu(p, current_device()), [&](const Launch& launch) {
    return run<LogitTypes, Flags, Flags>(DD2_KERNEL(norm_moments_kernel), launch, p, stream) ||
           run<LogitTypes, Flags, Flags>(DD2_KERNEL(group_norm_silu_fwd_kernel), launch, p, stream);
  });
}

}  // namespace dd2::cuda
