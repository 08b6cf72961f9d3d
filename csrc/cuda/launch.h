// Entry points of the CUDA kernels; `stream` is a cudaStream_t. They throw std::runtime_error.
#pragma once

#include "dd2/conditional_score.h"

namespace dd2::cuda {

void launch_conditional_score(const ConditionalScoreParams& params, void* stream);

}  // namespace dd2::cuda
