#include "dd2/flow_solve.cuh"

#include "launch.h"
#include "run.h"

namespace dd2::cuda {

void launch_flow_solve(const FlowSolveParams& p, void* stream) {
  run_all(plan_flow_solve(p, current_device()), [&](const Launch& launch) {
    return run<Values<8, 32>, Flags>(DD2_KERNEL(flow_solve_fwd_kernel), launch, p, stream);
  });
}

}  // namespace dd2::cuda
