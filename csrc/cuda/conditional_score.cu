#include "dd2/conditional_score.cuh"

#include <stdexcept>
#include <string>

#include "launch.h"

namespace dd2::cuda {
namespace {

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("conditional_score: ") + what + ": " +
                             cudaGetErrorString(status));
  }
}

template <LogitType kType, int kDim, bool kJacobian, bool kStaged>
void launch(const ConditionalScoreParams& p, size_t shared, cudaStream_t stream) {
  const auto kernel = conditional_score_fwd_kernel<kType, kDim, kJacobian, kStaged>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared)),
        "shared memory");
  const dim3 grid(static_cast<unsigned>(p.teacher.rows), static_cast<unsigned>((p.dim + kDim - 1) / kDim));
  kernel<<<grid, kThreads, shared, stream>>>(p);
  check(cudaGetLastError(), "launch");
}

// Filtered rows that fit beside the kernel's static shared memory are staged.
template <LogitType kType, int kDim, bool kJacobian>
void launch_staged_or_not(const ConditionalScoreParams& p, cudaStream_t stream) {
  int device = 0, limit = 0;
  check(cudaGetDevice(&device), "current device");
  check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "shared memory limit");
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes,
                              conditional_score_fwd_kernel<kType, kDim, kJacobian, true>),
        "kernel attributes");
  const size_t staged = conditional_score_shared_floats<kDim, true>(p) * sizeof(float);
  if (p.teacher.filtered() && staged + attributes.sharedSizeBytes <= static_cast<size_t>(limit)) {
    launch<kType, kDim, kJacobian, true>(p, staged, stream);
  } else {
    const size_t shared = conditional_score_shared_floats<kDim, false>(p) * sizeof(float);
    launch<kType, kDim, kJacobian, false>(p, shared, stream);
  }
}

template <LogitType kType>
void launch_dim(const ConditionalScoreParams& p, cudaStream_t stream) {
  const bool jacobian = p.direction != nullptr;
  if (p.dim <= 8) {
    jacobian ? launch_staged_or_not<kType, 8, true>(p, stream)
             : launch_staged_or_not<kType, 8, false>(p, stream);
  } else {
    jacobian ? launch_staged_or_not<kType, 32, true>(p, stream)
             : launch_staged_or_not<kType, 32, false>(p, stream);
  }
}

}  // namespace

void launch_conditional_score(const ConditionalScoreParams& p, void* stream) {
  if (p.teacher.rows <= 0 || p.draws <= 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (p.teacher.logit_type) {
    case LogitType::kFloat32: return launch_dim<LogitType::kFloat32>(p, cuda_stream);
    case LogitType::kBFloat16: return launch_dim<LogitType::kBFloat16>(p, cuda_stream);
    default: return launch_dim<LogitType::kFloat16>(p, cuda_stream);
  }
}

}  // namespace dd2::cuda
