#include "dd2/sample_code.cuh"

#include "launch.h"
#include "run.h"

namespace dd2::cuda {

void launch_sample_code(const SampleCodeParams& p, void* stream) {
  run_all(plan_sample_code(p, current_device()), [&](const Launch& launch) {
    return run<AnyType, Values<kFewThreads, kThreads>, Values<true>>(
               DD2_KERNEL(sample_code_fwd_kernel), launch, p, stream) ||
           run<LogitTypes, Values<kThreads>, Values<false>>(DD2_KERNEL(sample_code_fwd_kernel),
                                                            launch, p, stream);
  });
}

}  // namespace dd2::cuda
