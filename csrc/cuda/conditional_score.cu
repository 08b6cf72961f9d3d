#include "dd2/conditional_score.cuh"
#include "dd2/direct_score.cuh"
#include "dd2/row_filter.cuh"
#include "dd2/split_codebook.cuh"

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
  run_all(plan_conditional_score(p, current_device()), [&](const Launch& l) {
    using Dims = Values<8, 32>;
    return run<LogitTypes, Dims, Flags, Off>(DD2_KERNEL(conditional_score_fwd_kernel), l, p, stream) ||
           run<AnyType, Dims, Flags, Flags>(DD2_KERNEL(conditional_score_fwd_kernel), l, p, stream) ||
           run<Values<16, 32, 64>>(DD2_KERNEL(split_codebook_kernel), l, p, stream) ||
           run<Values<kFewThreads, kThreads>, Values<true>>(DD2_KERNEL(row_filter_kernel), l, p,
                                                            stream) ||
           run<Values<kThreads>, Values<false>>(DD2_KERNEL(row_filter_kernel), l, p, stream) ||
           run<Dims, Flags>(DD2_KERNEL(direct_score_fwd_kernel), l, p, stream) ||
           run_dense(l, p, stream);
  });
}

}  // namespace dd2::cuda
