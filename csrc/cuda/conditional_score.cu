#include "dd2/conditional_score.cuh"

#include "dense_score.h"
#include "launch.h"
#include "run.h"

namespace dd2::cuda {
namespace {

bool run_dense(const Launch& launch, const ConditionalScoreParams& p, void* stream) {
  switch (p.teacher.logit_type) {
    case LogitType::kFloat32: return run_dense_score<LogitType::kFloat32>(launch, p, stream);
    case LogitType::kBFloat16: return run_dense_score<LogitType::kBFloat16>(launch, p, stream);
    default: return run_dense_score<LogitType::kFloat16>(launch, p, stream);
  }
}

}  // namespace

void launch_conditional_score(const ConditionalScoreParams& p, void* stream) {
  run_all(plan_conditional_score(p, current_device()), [&](const Launch& launch) {
    return run<LogitTypes, Values<8, 32>, Flags, Flags>(DD2_KERNEL(conditional_score_fwd_kernel),
                                                        launch, p, stream) ||
           run_dense(launch, p, stream);
  });
}

}  // namespace dd2::cuda
