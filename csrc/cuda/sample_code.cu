#include "dd2/sample_code.cuh"

#include "check.h"
#include "launch.h"

namespace dd2::cuda {
namespace {

constexpr const char* kOp = "sample_code";

template <LogitType kType>
void launch_type(const SampleCodeParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.teacher.rows));
  const size_t staged = static_cast<size_t>(p.teacher.staged_floats()) * sizeof(float);
  if (fits_shared(sample_code_fwd_kernel<kType, true>, staged, kOp)) {
    launch(sample_code_fwd_kernel<kType, true>, grid, kThreads, staged, stream, p, kOp);
  } else {
    launch(sample_code_fwd_kernel<kType, false>, grid, kThreads, 0, stream, p, kOp);
  }
}

}  // namespace

void launch_sample_code(const SampleCodeParams& p, void* stream) {
  if (p.teacher.rows <= 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (p.teacher.logit_type) {
    case LogitType::kFloat32: return launch_type<LogitType::kFloat32>(p, cuda_stream);
    case LogitType::kBFloat16: return launch_type<LogitType::kBFloat16>(p, cuda_stream);
    default: return launch_type<LogitType::kFloat16>(p, cuda_stream);
  }
}

}  // namespace dd2::cuda
