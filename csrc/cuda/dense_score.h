// The conditional score by tensor cores, for codes of at most largest_dense_dim values.
#pragma once

#include <cuda_runtime.h>

#include "dd2/conditional_score.h"

namespace dd2::cuda {

// Sums of longer codes do not fit in a thread's registers.
inline long long largest_dense_dim(const ConditionalScoreParams& p) {
  return p.direction != nullptr ? 32 : 64;
}

// Defined in dense_score_*.cu; the workspace is dd2::DenseWorkspace.
template <LogitType kType>
void launch_dense_score(const ConditionalScoreParams& params, cudaStream_t stream);

}  // namespace dd2::cuda
