// Entry points of the CUDA kernels; `stream` is a cudaStream_t. They throw std::runtime_error.
#pragma once

#include "operators.h"
#include "plan/plan.h"

namespace dd2::cuda {

#define DD2_CPU_OPERATOR(name, Params)
#define DD2_OPERATOR(name, Params) void launch_##name(const Params& params, void* stream);
#define DD2_CUDA_OPERATOR DD2_OPERATOR
#include "operators.def"
#undef DD2_OPERATOR

// The current device.
Device current_device();

// Null, or why the current device runs none of them: an older driver, no machine code for it.
const char* unusable();

}  // namespace dd2::cuda
