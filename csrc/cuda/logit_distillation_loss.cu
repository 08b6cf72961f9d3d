#include "dd2/logit_distillation_loss.cuh"

#include "dd2/logit_distillation_gradient.cuh"
#include "launch.h"
#include "run.h"

namespace dd2::cuda {

void launch_logit_distillation_loss(const LogitDistillationLossParams& p, void* stream) {
  run_all(plan_logit_distillation_loss(p, current_device()), [&](const Launch& launch) {
    if (p.loss == nullptr) {
      launch_kernel(logit_distillation_gradient_kernel, launch, p, stream);
      return true;
    }
    return run<Values<kFewThreads, kThreads>, Values<true>>(
               DD2_KERNEL(logit_distillation_loss_fwd_kernel), launch, p, stream) ||
           run<Values<kThreads>, Values<false>>(DD2_KERNEL(logit_distillation_loss_fwd_kernel),
                                                launch, p, stream);
  });
}

}  // namespace dd2::cuda
