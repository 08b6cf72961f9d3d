// Entry points of the CUDA kernels; `stream` is a cudaStream_t. They throw std::runtime_error.
#pragma once

#include "operators.h"

namespace dd2::cuda {

#define DD2_CPU_OPERATOR(name, Params)
#define DD2_OPERATOR(name, Params) void launch_##name(const Params& params, void* stream);
#include "operators.def"
#undef DD2_OPERATOR

// Null, or why the current device runs none of them: an older driver, no machine code for it.
const char* unusable();

// Bytes of workspace that tensor cores need, or 0 where one block a row is faster on this device.
long long conditional_score_workspace(const ConditionalScoreParams& params);

}  // namespace dd2::cuda
