// Defines run_dense_score for the types that are instantiated.
#pragma once

#include "dd2/dense_score.cuh"

#include "dense_score.h"
#include "run.h"

namespace dd2::cuda {

template <LogitType kType>
bool run_dense_score(const Launch& l, const ConditionalScoreParams& p, void* s) {
  using Type = Values<kType>;
  return run<Type, Values<16, 32>, Flags, Flags>(DD2_KERNEL(dense_score_fwd_kernel), l, p, s) ||
         run<Type, Values<64>, Off, Flags>(DD2_KERNEL(dense_score_fwd_kernel), l, p, s);
}

}  // namespace dd2::cuda
