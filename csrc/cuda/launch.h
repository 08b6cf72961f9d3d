// Entry points of the CUDA kernels; `stream` is a cudaStream_t. They throw std::runtime_error.
#pragma once

#include "dd2/conditional_score.h"
#include "dd2/flow_solve.h"
#include "dd2/image_normal.h"
#include "dd2/nearest_code.h"
#include "dd2/sample_code.h"

namespace dd2::cuda {

// Null, or why the current device runs none of them: an older driver, no machine code for it.
const char* unusable();

// Bytes of workspace that tensor cores need, or 0 where one block a row is faster on this device.
long long conditional_score_workspace(const ConditionalScoreParams& params);
void launch_conditional_score(const ConditionalScoreParams& params, void* stream);
void launch_flow_solve(const FlowSolveParams& params, void* stream);
void launch_image_normal(const ImageNormalParams& params, void* stream);
void launch_nearest_code(const NearestCodeParams& params, void* stream);
void launch_sample_code(const SampleCodeParams& params, void* stream);

}  // namespace dd2::cuda
