#include "dd2/conditional_score.cuh"

#include "check.h"
#include "launch.h"

namespace dd2::cuda {
namespace {

constexpr const char* kOp = "conditional_score";

// Filtered rows that fit beside the kernel's static shared memory are staged.
template <LogitType kType, int kDim, bool kJacobian>
void launch_staged_or_not(const ConditionalScoreParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.teacher.rows), conditional_score_blocks<kDim>(p));
  const auto staged_kernel = conditional_score_fwd_kernel<kType, kDim, kJacobian, true>;
  const size_t staged = conditional_score_shared_floats<kDim, true>(p) * sizeof(float);
  if (p.teacher.filtered() && fits_shared(staged_kernel, staged, kOp)) {
    launch(staged_kernel, grid, kThreads, staged, stream, p, kOp);
  } else {
    const size_t shared = conditional_score_shared_floats<kDim, false>(p) * sizeof(float);
    launch(conditional_score_fwd_kernel<kType, kDim, kJacobian, false>, grid, kThreads, shared,
           stream, p, kOp);
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
