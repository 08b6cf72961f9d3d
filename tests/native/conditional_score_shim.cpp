// csrc/cuda/conditional_score.cu and its kernels on the CPU.
#include "named_kernels.h"
#include "tensor_shim.h"

#include "cuda/conditional_score.cu"

using namespace dd2;

// In place of dense_score_*.cu, whose launches dense_score_shim.cpp runs.
template <LogitType kType>
void dd2::cuda::launch_dense_score(const ConditionalScoreParams&, cudaStream_t) {
  throw std::logic_error("tensor cores");
}

#define DD2_VARIANTS(type, dim)                                                     \
  DD2_KERNEL(conditional_score_fwd_kernel<LogitType::type, dim, false, false>),     \
      DD2_KERNEL(conditional_score_fwd_kernel<LogitType::type, dim, false, true>),  \
      DD2_KERNEL(conditional_score_fwd_kernel<LogitType::type, dim, true, false>),  \
      DD2_KERNEL(conditional_score_fwd_kernel<LogitType::type, dim, true, true>)

constexpr NamedKernel<ConditionalScoreParams> kKernels[] = {
    DD2_VARIANTS(kFloat32, 8),  DD2_VARIANTS(kFloat32, 32), DD2_VARIANTS(kBFloat16, 8),
    DD2_VARIANTS(kBFloat16, 32), DD2_VARIANTS(kFloat16, 8), DD2_VARIANTS(kFloat16, 32)};

DD2_EXPORT(conditional_score, ConditionalScoreParams, kKernels)

extern "C" long long conditional_score_workspace(const ConditionalScoreParams* p, int processors) {
  fake_runtime::device = {0, 0, processors};
  return dd2::cuda::conditional_score_workspace(*p);
}
