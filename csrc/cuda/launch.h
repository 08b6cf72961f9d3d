// Entry points of the CUDA kernels; `stream` is a cudaStream_t. They throw std::runtime_error.
#pragma once

#include "dd2/conditional_score.h"
#include "dd2/nearest_code.h"
#include "dd2/sample_code.h"

namespace dd2::cuda {

void launch_conditional_score(const ConditionalScoreParams& params, void* stream);
void launch_nearest_code(const NearestCodeParams& params, void* stream);
void launch_sample_code(const SampleCodeParams& params, void* stream);

}  // namespace dd2::cuda
