// Defines run_dense_score for the types that are instantiated.
#pragma once

#include "dd2/dense_score.cuh"
#include "dd2/direct_score.cuh"

#include "dense_score.h"
#include "run.h"

namespace dd2::cuda {

template <LogitType kType>
bool run_dense_score(const Launch& l, const ConditionalScoreParams& p, void* s) {
  using Type = Values<kType>;
  using None = Values<false>;
  return run<Values<16, 32, 64>>(DD2_KERNEL(split_codebook_kernel), l, p, s) ||
         run<Type, Flags>(DD2_KERNEL(row_filter_kernel), l, p, s) ||
         run<Type, Values<16, 32>, Flags, Flags>(DD2_KERNEL(dense_score_fwd_kernel), l, p, s) ||
         run<Type, Values<64>, None, Flags>(DD2_KERNEL(dense_score_fwd_kernel), l, p, s) ||
         run<Type, Values<8, 32>, Flags>(DD2_KERNEL(direct_score_fwd_kernel), l, p, s);
}

}  // namespace dd2::cuda
